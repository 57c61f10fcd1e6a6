"""Truths about the Vendi score; reference values by vendi-score 0.0.3 with round-off eigenvalues left out."""

import math
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics.vendi_score import per_class_vendi_score, rke, vendi_score
from fdistill.evaluation.metrics.vendi_spectrum import hill_number, vendi_spectrum

ORDERS = [0.5, 1.0, 2.0, math.inf]
KERNELS = [{}, {"kernel": "rbf", "bandwidth": 2.0}]


def rows(n=50, d=8):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)))


@pytest.mark.parametrize("order", ORDERS)
def test_of_orthogonal_samples_is_their_number(order):
    assert vendi_score(torch.eye(5), order).item() == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [3, 40])
@pytest.mark.parametrize("kernel", KERNELS)
def test_of_identical_samples_is_one(order, width, kernel):
    assert vendi_score(rows(1, width).expand(5, -1), order, **kernel).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_of_one_sample_is_one(order, kernel):
    assert vendi_score(rows(1), order, **kernel).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_of_even_orthogonal_clusters_is_their_number(order):
    two = torch.tensor([[1.0, 0, 0]] * 3 + [[0, 0, 7.0]] * 3)
    assert vendi_score(two, order).item() == pytest.approx(2, rel=1e-9)
    assert vendi_score(torch.eye(6).repeat(4, 1), order).item() == pytest.approx(6, rel=1e-9)
    assert vendi_score(100 * torch.eye(6).repeat(4, 1), order, "rbf", 1.0).item() == pytest.approx(6, rel=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_of_uneven_orthogonal_clusters_is_the_hill_number_of_their_shares(order):
    shares = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    clusters = torch.eye(3, dtype=torch.float64).repeat_interleave(torch.tensor([1, 2, 7]), dim=0)
    assert_close(vendi_score(clusters, order), hill_number(shares, order), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("features", "centred", "kernel", "values"),
    [
        (rows(), False, {}, (7.685785355468973, 7.397530734332697, 6.9086950008835855, 4.713611105461818)),
        (rows(), True, {}, (7.6804236044109775, 7.389126231759191, 6.900571993250987, 4.827098554388701)),
        (rows() + 5, False, {}, (2.131148276622411, 1.2335055836762414, 1.0703045949300083, 1.0346541763170316)),
        (rows() + 5, True, {}, (7.6804236044109775, 7.389126231759191, 6.900571993250993, 4.827098554388703)),
        (
            rows(),
            False,
            {"kernel": "rbf", "bandwidth": 2.0},
            (35.032005921246274, 24.193796648690626, 12.66462105136352, 4.335051721217995),
        ),
    ],
    ids=["cosine", "cosine centred", "cosine shifted", "cosine shifted and centred", "rbf"],
)
def test_of_random_rows_agrees_with_vendi_score(features, centred, kernel, values):
    centre = features.mean(0) if centred else None
    found = [vendi_score(features, order, centre=centre, **kernel).item() for order in ORDERS]
    assert found == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", [{}, {"kernel": "rbf", "bandwidth": 2.0}])
def test_copies_of_all_samples_change_nothing(order, kernel):
    assert_close(
        vendi_score(rows().repeat(3, 1), order, **kernel), vendi_score(rows(), order, **kernel), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50)])
def test_of_the_cosine_depends_neither_on_rotation_nor_on_the_length_of_any_row(order, n, d):
    x = rows(n, d)
    rotation = torch.linalg.qr(rows(d, d)).Q
    lengths = torch.logspace(-3, 3, n, dtype=torch.float64)[:, None]
    assert_close(vendi_score(x @ rotation * lengths, order), vendi_score(x, order), rtol=1e-10, atol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_of_the_gaussian_depends_on_distances_over_bandwidth_alone(order):
    rotation, score = torch.linalg.qr(rows(8, 8)).Q, vendi_score(rows(), order, "rbf", 2.0)
    assert_close(vendi_score(3 * rows() @ rotation + 7, order, "rbf", 6.0), score, rtol=1e-10, atol=0)
    assert_close(vendi_score(rows(), order, "rbf", 2.0, centre=torch.ones(8)), score, rtol=1e-10, atol=0)
    assert_close(vendi_score(rows() + 1e4, order, "rbf", 2.0), score, rtol=1e-9, atol=0)  # 1e4 costs 4 of 16 digits


@pytest.mark.parametrize("order", ORDERS)
def test_of_the_gaussian_is_n_for_narrow_kernels_and_one_for_wide(order):
    assert vendi_score(rows(), order, "rbf", 1e-3).item() == pytest.approx(50, rel=1e-12)
    assert vendi_score(rows(), order, "rbf", 1e7).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_more_dimensions_than_samples_give_the_same_as_padding_with_zeros(order):
    x = rows(12, 8)
    assert_close(vendi_score(torch.nn.functional.pad(x, (0, 20)), order), vendi_score(x, order), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (5, 60)])
@pytest.mark.parametrize("kernel", [{}, {"kernel": "rbf", "bandwidth": 2.0}])
def test_blocks_of_rows_and_columns_leave_no_seam(monkeypatch, n, d, kernel):
    expected = [vendi_score(rows(n, d), order, **kernel) for order in ORDERS]
    for name in ("vendi_kernel.ROWS", "vendi_kernel.COLUMNS"):
        monkeypatch.setattr(f"fdistill.evaluation.metrics.{name}", 3)
    monkeypatch.setattr(
        "fdistill.evaluation.metrics.vendi_kernel.blocks", lambda features: iter(features.double().split(3))
    )
    assert_close([vendi_score(rows(n, d), order, **kernel) for order in ORDERS], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_order_two_needs_no_eigenvalues(n, d, kernel):
    by_eigenvalues = hill_number(vendi_spectrum(rows(n, d), **kernel), 2)
    assert_close(rke(rows(n, d), **kernel), by_eigenvalues, rtol=1e-10, atol=0)
    assert_close(vendi_score(rows(n, d), 2, **kernel), by_eigenvalues, rtol=1e-10, atol=0)


def test_order_two_is_the_frobenius_norm_of_the_kernel():
    unit = torch.nn.functional.normalize(rows())
    assert_close(rke(rows()), 50**2 / (unit @ unit.T).square().sum(), rtol=1e-10, atol=0)
    kernel = (-torch.cdist(rows(), rows()).square() / 8).exp()
    assert_close(rke(rows(), "rbf", 2.0), 50**2 / kernel.square().sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_falls_with_the_order_and_is_continuous_at_one_and_infinity(kernel):
    scores = torch.stack([vendi_score(rows(), order, **kernel) for order in (0.25, 0.5, 1, 2, 4, 1000, math.inf)])
    assert (scores.diff() < 0).all()
    for near in (1 - 1e-6, 1 + 1e-6):
        assert_close(vendi_score(rows(), near, **kernel), scores[2], rtol=1e-5, atol=0)
    assert_close(vendi_score(rows(), 1e7, **kernel), scores[-1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_shares_of_the_spectrum_fall_and_sum_to_one(kernel):
    share = vendi_spectrum(rows(), **kernel)
    assert share.dtype == torch.float64
    assert (share > 0).all()
    assert (share.diff() <= 0).all()
    assert share.sum().item() == pytest.approx(1, rel=1e-14)


def test_spectrum_of_the_cosine_has_as_many_shares_as_there_are_directions():
    assert vendi_spectrum(rows(50, 8)).shape == vendi_spectrum(rows(8, 50)).shape == (8,)
    low_rank = rows(50, 3) @ rows(3, 30)
    assert vendi_spectrum(low_rank).shape == (3,)
    assert_close(vendi_spectrum(2 * torch.eye(4)), torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-14, atol=0)


def test_mean_over_classes_is_one_when_every_class_has_collapsed_although_classes_differ():
    labels = torch.arange(4).repeat_interleave(6)
    collapsed = torch.eye(4)[labels]
    assert vendi_score(collapsed).item() == pytest.approx(4, rel=1e-12)
    assert per_class_vendi_score(collapsed, labels, 4).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mean_over_classes_weighs_classes_evenly_counts_one_sample_as_one_and_skips_empty_ones(kernel):
    labels = torch.tensor([0] * 30 + [3] * 19 + [7])
    mean = (vendi_score(rows()[:30], **kernel) + vendi_score(rows()[30:49], **kernel) + 1) / 3
    assert_close(per_class_vendi_score(rows(), labels, 9, **kernel), mean, rtol=1e-12, atol=0)


def test_of_half_precision_is_that_of_the_same_numbers_in_double():
    half = rows().bfloat16()
    assert_close(vendi_score(half), vendi_score(half.double()), rtol=0, atol=0)


@pytest.mark.parametrize("function", [vendi_score, rke, vendi_spectrum])
def test_wrong_features_kernels_and_centres_raise(function):
    with pytest.raises(ValueError, match="got 1 of 3"):
        function(torch.tensor([[1.0, 0], [0, 0], [0, 1]]))
    for settings, message in [
        ({"kernel": "rbf"}, "bandwidth"),
        ({"kernel": "rbf", "bandwidth": 0.0}, "bandwidth"),
        ({"bandwidth": 1.0}, "bandwidth"),
        ({"kernel": "polynomial"}, "polynomial"),
        ({"centre": torch.zeros(3)}, r"expected \[8\], got \[3\]"),
        ({"centre": torch.full((8,), math.inf)}, "finite"),
        ({"centre": rows()[0]}, "rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(rows(), **settings)


def test_constant_features_score_one_until_they_are_centred_on_themselves():
    constant = torch.ones(6, 3)
    assert vendi_score(constant, centre=torch.full((3,), 0.5)).item() == pytest.approx(1, rel=1e-12)
    with pytest.raises(ValueError, match="got 6 of 6"):
        vendi_score(constant, centre=torch.ones(3))


def test_wrong_orders_and_labels_raise():
    for order in (0, -1, math.nan):
        with pytest.raises(ValueError, match="order"):
            vendi_score(rows(), order)
    with pytest.raises(ValueError, match="expected 50, got 49"):
        per_class_vendi_score(rows(), torch.zeros(49, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="labels"):
        per_class_vendi_score(rows(), torch.full((50,), 2), 2)


def test_an_exact_spectrum_of_too_many_samples_raises_but_order_two_does_not(monkeypatch):
    monkeypatch.setattr(sys.modules["fdistill.evaluation.metrics.vendi_spectrum"], "LARGEST_SIDE", 40)
    with pytest.raises(ValueError, match="truncated_vendi_score"):
        vendi_score(rows(), kernel="rbf", bandwidth=1.0)
    with pytest.raises(ValueError, match="rows"):
        vendi_score(rows(60, 50))
    assert vendi_score(rows()) > 7  # the cosine of 8 features needs 8 x 8 numbers
    assert vendi_score(rows(), 2, "rbf", 1.0) > 1


def test_order_two_of_wide_features_takes_pairs_where_the_gram_matrix_is_too_large(monkeypatch):
    expected = rke(rows())
    monkeypatch.setattr(sys.modules["fdistill.evaluation.metrics.vendi_spectrum"], "LARGEST_SIDE", 4)
    assert_close(rke(rows()), expected, rtol=1e-12, atol=0)

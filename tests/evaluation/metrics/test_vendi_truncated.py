"""Truths about the truncated Vendi score, and about the eigenvalues it takes without a matrix of all pairs."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.truncated_vendi import largest_eigenvalues, truncated_vendi_score
from fdistill.evaluation.metrics.vendi_score import vendi_score
from fdistill.evaluation.metrics.vendi_spectrum import hill_number, vendi_spectrum

ORDERS = [0.5, 1.0, 2.0, math.inf]


def rows(n=60, d=4):
    return torch.randn(n, d, dtype=torch.float64, generator=generator_for(n, d))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 10.0])
def test_all_eigenvalues_give_the_full_score(order, bandwidth):
    exact = vendi_score(rows(), order, "rbf", bandwidth)
    assert_close(truncated_vendi_score(rows(), bandwidth, 60, order), exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_rises_with_the_eigenvalues_kept_to_the_full_score_which_it_never_exceeds(order):
    scores = torch.stack([truncated_vendi_score(rows(), 1.0, t, order) for t in (1, 2, 4, 8, 16, 32, 60)])
    assert (scores.diff() > 0).all()
    assert (scores[:-1] < vendi_score(rows(), order, "rbf", 1.0)).all()
    assert scores[0].item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_spreads_the_mass_of_the_other_eigenvalues_evenly(order):
    kept = vendi_spectrum(rows(300), "rbf", 1.0)[:20]
    expected = hill_number(kept + (1 - kept.sum()) / 20, order)
    assert_close(truncated_vendi_score(rows(300), 1.0, 20, order), expected, rtol=1e-7, atol=0)


def test_is_biased_low_by_little_where_the_kept_eigenvalues_hold_nearly_all_mass_and_capped_at_t_where_not():
    wide, narrow = (vendi_score(rows(300), 1.0, "rbf", bandwidth) for bandwidth in (3.0, 0.1))
    assert 0 < 1 - truncated_vendi_score(rows(300), 3.0, 60) / wide < 1e-3
    assert narrow > 250
    assert 19 < truncated_vendi_score(rows(300), 0.1, 20) < 20


@pytest.mark.parametrize("order", ORDERS)
def test_of_separated_clusters_is_their_number_and_of_identical_samples_one(order):
    clusters = 100 * torch.eye(6).repeat(5, 1)
    assert truncated_vendi_score(clusters, 1.0, 6, order).item() == pytest.approx(6, rel=1e-9)
    assert truncated_vendi_score(clusters, 1.0, 20, order).item() == pytest.approx(6, rel=1e-9)
    assert truncated_vendi_score(torch.ones(30, 2), 1.0, 5, order).item() == pytest.approx(1, rel=1e-9)
    assert truncated_vendi_score(torch.ones(1, 2), 1.0, 1, order).item() == pytest.approx(1, rel=1e-12)


def test_converges_with_few_samples_while_the_full_score_still_grows():
    small, large = rows(150, 8), rows(600, 8)
    full = vendi_score(large, 1.0, "rbf", 1.5) / vendi_score(small, 1.0, "rbf", 1.5)
    truncated = truncated_vendi_score(large, 1.5, 10) / truncated_vendi_score(small, 1.5, 10)
    assert full > 1.8
    assert 0.98 < truncated < 1.02


@pytest.mark.parametrize("decay", [0.999, 0.9, 0.3])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_largest_eigenvalues_of_a_known_spectrum_are_found(decay, count):
    values = decay ** torch.arange(200, dtype=torch.float64)
    values /= values.sum()
    vectors = torch.linalg.qr(rows(200, 200)).Q
    matrix = (vectors * values) @ vectors.T
    found = largest_eigenvalues(lambda block: matrix @ block, 200, count, generator_for(1))
    assert_close(found, values[:count], rtol=0, atol=1e-7)


def test_blocks_of_pairs_leave_no_seam(monkeypatch):
    expected = truncated_vendi_score(rows(), 1.0, 12)
    monkeypatch.setattr("fdistill.evaluation.metrics.vendi_kernel.ROWS", 7)
    monkeypatch.setattr(
        "fdistill.evaluation.metrics.vendi_kernel.blocks", lambda features: iter(features.double().split(7))
    )
    assert_close(truncated_vendi_score(rows(), 1.0, 12), expected, rtol=1e-7, atol=0)


def test_neither_reads_nor_moves_the_global_random_state():
    state = torch.get_rng_state()
    first = truncated_vendi_score(rows(), 1.0, 5)
    assert torch.get_rng_state().equal(state)
    assert truncated_vendi_score(rows(), 1.0, 5) == first


def test_wrong_arguments_raise():
    for count in (0, 61):
        with pytest.raises(ValueError, match=f"expected at most 60, got {count}"):
            truncated_vendi_score(rows(), 1.0, count)
    with pytest.raises(ValueError, match="bandwidth"):
        truncated_vendi_score(rows(), -1.0, 5)
    with pytest.raises(ValueError, match="order"):
        truncated_vendi_score(rows(), 1.0, 5, 0)
    with pytest.raises(ValueError, match="finite"):
        truncated_vendi_score(rows() * math.nan, 1.0, 5)

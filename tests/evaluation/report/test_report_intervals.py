"""Intervals are as wide as fresh draws scatter."""

import math

import pytest
import torch

from fdistill.evaluation.report.intervals import intervals, share_interval, standard_errors
from fdistill.evaluation.report.rows import average_rows, compare, measure
from fdistill.evaluation.samples import Samples

pytestmark = pytest.mark.system  # seconds, too many for make check

N, D = 200, 6


def gaussian(seed, scale=1.0, shift=0.0, n=N, d=D):
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Samples(scale * noise * torch.linspace(0.4, 1.6, d, dtype=torch.float64) + shift)


@pytest.fixture(scope="module")
def scatter():
    """Standard deviations over fresh draws of a generator that shrinks and is off, and those of halves of four."""
    draws = [(gaussian(2 * i, 0.8, 0.3), gaussian(2 * i + 1)) for i in range(64)]
    rows = [compare(*pair) for pair in draws[:60]]
    errors = [standard_errors(*pair, 0, 15, 0) for pair in draws[60:]]
    names = [name for name, value in rows[0].items() if value is not None]
    fresh = {name: torch.tensor([row[name] for row in rows]).std().item() for name in names}
    return fresh, {name: sum(found[name] for found in errors) / len(errors) for name in names}


@pytest.mark.parametrize(
    "name",
    [
        "frechet_distance",
        "precision",
        "recall",
        "coverage",
        "density",
        "vendi",
        "vendi_ratio",
        "in_batch_similarity",
        "tid",
        "anchored_tid",
        "count_ratio",
        "neighbour_distance_ratio",
    ],
)
def test_halves_of_one_draw_tell_the_scatter_over_draws(name, scatter):
    fresh, halves = scatter
    assert halves[name] == pytest.approx(fresh[name], rel=0.35)


def test_classes_that_are_asked_for_do_not_scatter():
    """Independent halves would hold different numbers of each class, and the distance would see it."""
    centres = 8 * torch.eye(D, dtype=torch.float64)
    labels = torch.randint(D, (N,), generator=torch.Generator().manual_seed(0))

    def of_classes(seed, wanted):
        noise = gaussian(seed)
        return Samples(noise.features + centres[labels], wanted=wanted)

    rows = [compare(of_classes(2 * i, labels), of_classes(2 * i + 1, labels)) for i in range(60)]
    fresh = torch.tensor([row["frechet_distance"] for row in rows]).std().item()
    asked, unasked = (
        standard_errors(of_classes(900, wanted), of_classes(901, labels), 0, 30, 0)["frechet_distance"]
        for wanted in (labels, None)
    )
    assert fresh < asked < 2 * fresh  # too wide for equal laws, as under every jackknife
    assert unasked > 1.4 * asked


@pytest.mark.parametrize(("share", "n"), [(0.0, 50), (0.1, 100), (0.5, 400), (1.0, 30)])
def test_a_shares_interval_holds_the_shares_that_the_data_does_not_refute(share, n):
    """Wilson: the ends are the p with |share - p| = 1.96 sqrt(p (1 - p) / n)."""
    for end in share_interval(share, n):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n))
    low, high = share_interval(share, n)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0


def test_the_interval_of_label_accuracy_is_the_binomial_one_of_many_samples():
    generator = torch.Generator().manual_seed(0)
    modes = torch.randint(2, (2, 400), generator=generator)
    x = torch.randn(2, 400, 3, generator=generator, dtype=torch.float64)
    wanted = torch.where(torch.rand(400, generator=generator) < 0.8, modes[0], 1 - modes[0])
    generated, reference = Samples(x[0], modes[0], wanted), Samples(x[1], modes[1], modes[1])
    row = average_rows([measure(generated, reference, 2)])
    low, high = intervals(row, generated, reference, 2, 50, 0)["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 400), rel=0.25)


def test_intervals_surround_their_numbers_within_the_range_of_each():
    generated, reference = gaussian(0, 0.1), gaussian(1)
    training = gaussian(2).features
    row = average_rows([measure(generated, reference, training=training, teacher=training)])
    found = intervals(row, generated, reference, 0, 5, 0)
    assert all(low <= row[name] <= high for name, (low, high) in found.items())
    assert found["memorized_fraction"] == list(share_interval(row["memorized_fraction"], N))
    assert found["recall"][0] >= 0
    assert found["precision"][1] <= 1
    half = 1.96 * row["kernel_distance_error"]
    assert found["kernel_distance"] == pytest.approx([row["kernel_distance"] - half, row["kernel_distance"] + half])
    assert "paired_distance" in found
    assert not found.keys() & {"accuracy", "excess_kurtosis", "local_coverage"}


def test_the_seed_decides_and_no_splits_mean_no_intervals():
    generated, reference = gaussian(0), gaussian(1)
    row = average_rows([measure(generated, reference)])
    first, again, other = (intervals(row, generated, reference, 0, 3, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert intervals(row, generated, reference, 0, 0, 0) == {}


def test_mistakes():
    with pytest.raises(ValueError, match="expected 0 or more, got -1"):
        intervals({}, gaussian(0), gaussian(1), 0, -1, 0)
    with pytest.raises(ValueError, match="expected n >= 12, got 11"):
        intervals({}, gaussian(0, n=11), gaussian(1, n=11), 0, None, 0)

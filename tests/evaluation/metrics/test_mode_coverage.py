"""Truths about class and mode histograms."""

import math

import pytest
import torch

from fdistill.evaluation.metrics import ModeCoverage, class_entropy, mode_weight_kl


def test_entropy_is_one_for_even_classes_and_zero_for_one():
    assert class_entropy(torch.arange(10).repeat(7), 10).item() == pytest.approx(1, rel=1e-12)
    assert class_entropy(torch.full((20,), 3), 10) == 0


def test_entropy_of_half_the_classes_is_the_ratio_of_logarithms():
    assert class_entropy(torch.arange(5), 10).item() == pytest.approx(math.log(5) / math.log(10), rel=1e-12)


def test_kl_of_the_right_weights_is_zero_and_counts_are_normalised():
    labels = torch.tensor([0, 0, 0, 1])
    assert mode_weight_kl(labels, torch.tensor([0.75, 0.25])) == 0
    assert mode_weight_kl(labels, torch.tensor([3, 1])) == 0


def test_kl_of_half_the_modes_is_ln_two():
    assert mode_weight_kl(torch.arange(50), torch.ones(100)).item() == pytest.approx(math.log(2), rel=1e-12)


def test_kl_of_a_mode_that_the_reference_lacks_is_infinite():
    assert mode_weight_kl(torch.tensor([0, 1]), torch.tensor([1.0, 0.0])) == math.inf


def test_kl_of_a_finite_sample_has_the_first_order_bias():
    labels = torch.randint(1000, (26_000,), generator=torch.Generator().manual_seed(0))
    assert mode_weight_kl(labels, torch.ones(1000)).item() == pytest.approx(999 / 52_000, rel=0.15)


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.zeros(0).long()]
)
def test_broken_labels_raise(labels):
    with pytest.raises(ValueError, match="labels"):
        class_entropy(labels, 3)


def test_broken_arguments_raise():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="num_classes >= 2"):
        class_entropy(torch.zeros(3).long(), 1)
    with pytest.raises(ValueError, match="weights"):
        mode_weight_kl(labels, torch.tensor([1.0, -1.0]))


def uniform(n, modes, seed=0):
    return torch.randint(modes, (n,), generator=torch.Generator().manual_seed(seed))


def measured(metric, generated, real=None):
    for batch in generated.split(999):
        metric.update(batch, real=False)
    if real is not None:
        metric.update(real, real=True)
    return {name: value.item() for name, value in metric.compute().items()}


def nearest_corner(points):
    """Corners 0, 1, 2 at (0, 0), (10, 0), (0, 10); points farther than 3 from all of them are in none."""
    distance, label = torch.cdist(points.double(), torch.tensor([[0.0, 0], [10, 0], [0, 10]]).double()).min(1)
    return torch.where(distance < 3, label, -1)


def test_the_right_law_over_a_thousand_modes_scores_as_the_reference_does():
    # 26,000 samples: KL 0.01976 of which 999 / 52,000 = 0.01921 are bias
    ideal = measured(ModeCoverage(1000), uniform(26_000, 1000))
    assert ideal["modes_covered"] == 1000
    assert ideal["mode_coverage"] == ideal["mode_precision"] == 1
    assert ideal["mode_weight_kl"] == pytest.approx(0, abs=3 * math.sqrt(2 * 999) / 52_000)
    assert ideal["effective_modes"] == pytest.approx(1000 * math.exp(-999 / 52_000), rel=0.003)


def test_half_the_modes_score_half_the_coverage_and_ln_two():
    half = measured(ModeCoverage(1000), uniform(26_000, 500))
    assert half["modes_covered"] == 500
    assert half["mode_coverage"] == 0.5
    assert half["mode_weight_kl"] == pytest.approx(math.log(2), abs=3 * math.sqrt(2 * 499) / 52_000)
    assert half["mode_entropy"] == pytest.approx(math.log(half["effective_modes"]) / math.log(1000), rel=1e-12)


@pytest.mark.parametrize("from_real_samples", [False, True])
def test_weight_kl_of_the_right_law_is_zero_on_average(from_real_samples):
    values = []
    for seed in range(300):
        real = uniform(700, 20, seed=1000 + seed) if from_real_samples else None
        values.append(measured(ModeCoverage(20), uniform(400, 20, seed=seed), real)["mode_weight_kl"])
    values = torch.tensor(values, dtype=torch.float64)
    assert values.mean().abs() < 3 * values.std() / 300**0.5 + 1e-3  # 1e-3: second order of the bias
    assert (values < 0).double().mean() > 0.4


def test_a_mode_is_covered_from_a_quarter_of_its_own_weight_and_one_sample():
    # of 1,000 samples 100, 4 and 1 are a quarter of weights .4, .016, .004; .58 is missed by one
    weights, counts = torch.tensor([0.4, 0.016, 0.004, 0.58]), torch.tensor([100, 4, 1, 895])
    labels = torch.arange(4).repeat_interleave(counts)
    assert measured(ModeCoverage(4, weights=weights), labels)["modes_covered"] == 4
    for mode in range(3):
        fewer = torch.where(torch.arange(1000) == int(torch.nonzero(labels == mode)[0]), 3, labels)
        assert measured(ModeCoverage(4, weights=weights), fewer)["modes_covered"] == 3
    # a tiny weight asks for a sample at least, and a mode of weight 0 for none
    tiny = torch.tensor([1.0, 1e-9, 0.0])
    assert measured(ModeCoverage(3, weights=tiny), torch.zeros(10).long())["mode_coverage"] == 0.5


def test_samples_in_no_mode_lower_precision_and_coverage_but_neither_kl_nor_entropy():
    inside = torch.arange(10).repeat(10)
    without, beside = (measured(ModeCoverage(10), torch.cat([inside, torch.full((n,), -1)])) for n in (0, 300))
    assert (without["mode_precision"], beside["mode_precision"]) == (1, 0.25)
    assert (without["modes_covered"], beside["modes_covered"]) == (10, 10)  # 10 of 400 are a quarter of a tenth
    assert all(without[name] == beside[name] for name in ("mode_weight_kl", "mode_entropy", "effective_modes"))
    assert measured(ModeCoverage(10), torch.cat([inside, torch.full((301,), -1)]))["modes_covered"] == 0


def test_no_sample_in_any_mode_covers_nothing_at_infinite_divergence():
    assert measured(ModeCoverage(3), torch.full((5,), -1)) == {
        "modes_covered": 0,
        "mode_coverage": 0,
        "mode_precision": 0,
        "mode_weight_kl": math.inf,
        "mode_entropy": 0,
        "effective_modes": 0,
    }


def test_an_oracle_names_the_modes_of_features():
    points = torch.tensor([[0.1, 0.2], [9.0, 1.0], [-1.0, 10.0], [5.0, 5.0]])
    by_oracle = measured(ModeCoverage(3, nearest_corner), points, real=points[:2])
    assert by_oracle == measured(ModeCoverage(3), torch.tensor([0, 1, 2, -1]), real=torch.tensor([0, 1]))
    assert by_oracle["mode_coverage"] == 1
    assert by_oracle["mode_weight_kl"] == math.inf  # the third corner holds no real sample


def test_given_weights_outrank_real_samples_and_these_outrank_even_ones():
    labels, weights = torch.tensor([0] * 30 + [1] * 10), torch.tensor([1.0, 3.0])
    real = labels.repeat(10)
    kl = {
        "even": measured(ModeCoverage(2), labels)["mode_weight_kl"],
        "real": measured(ModeCoverage(2), labels, real)["mode_weight_kl"],
        "weights": measured(ModeCoverage(2, weights=weights), labels, real)["mode_weight_kl"],
    }
    assert kl["real"] == pytest.approx(-1 / 80 - 1 / 800, abs=1e-12)  # equal shares: what is left is the bias
    assert kl["even"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5) - 1 / 80, abs=1e-12)
    assert kl["weights"] == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1 / 3) - 1 / 80, abs=1e-12)


def test_a_broken_metric_of_modes_raises():
    with pytest.raises(ValueError, match="num_modes"):
        ModeCoverage(1)
    with pytest.raises(ValueError, match="expected 3, got 2"):
        ModeCoverage(3, weights=torch.ones(2))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        ModeCoverage(3, min_share=0)
    metric = ModeCoverage(3, nearest_corner)
    with pytest.raises(ValueError, match="got 1 of 2"):
        metric.update(torch.tensor([[0.0, 0.0], [math.nan, 0.0]]), real=False)
    with pytest.raises(ValueError, match="mode"):
        ModeCoverage(3, lambda x: torch.zeros(2, 3)).update(torch.zeros(2, 2), real=True)
    for labels in ([0, 3], [-2, 0], [0.0, 1.0], []):
        with pytest.raises(ValueError, match="labels"):
            ModeCoverage(3).update(torch.tensor(labels), real=False)
    metric.update(torch.full((4, 2), 5.0), real=True)
    metric.update(torch.zeros(4, 2), real=False)
    with pytest.raises(ValueError, match="got all 4 in none"):
        metric.compute()

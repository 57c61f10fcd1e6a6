"""The half that reports knows nothing of the choice, and all lengths are compared at the same samples' noise."""

import pytest
import torch
from tiny_runs import GivenData

from fdistill.evaluation.choose_average import LengthChoice, TwoHalves, better
from fdistill.evaluation.features import PixelFeatures

METRIC = "frechet_distance"


class Shifted:
    """A source of standard normal points, moved; writes down what it is asked for."""

    sample_shape, num_classes, evaluations, facts = (2,), 2, 1, {}

    def __init__(self, shift=0.0):
        self.shift, self.asked = shift, []

    def labels(self, n, seed, wanted=None):
        return wanted

    def draw(self, n, seed, labels=None):
        self.asked.append((n, seed, labels.tolist()))
        return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) + self.shift


def data(n=80):
    return GivenData(torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), num_classes=2)


def halves(n=None, repeats=3, seed=0, of=80):
    return TwoHalves(data(of), PixelFeatures(), n, seed, repeats)


def rows(choosing, reporting):
    return {"choosing": [{METRIC: v} for v in choosing], "reporting": [{METRIC: v} for v in reporting]}


def test_the_halves_of_the_held_out_split_have_no_sample_in_common():
    for n, size in ((None, 40), (30, 30)):
        first, second = (reference.features for reference in halves(n)._references)
        assert len(first) == len(second) == size
        assert torch.cdist(first, second).min() > 0


def test_every_source_gets_the_same_latents_and_classes_and_the_halves_get_others():
    bench, sources = halves(), [Shifted(), Shifted(1.0)]
    for source in sources:
        bench.rows("source", source)
    assert sources[0].asked == sources[1].asked
    seeds = [seed for _, seed, _ in sources[0].asked]
    assert len(set(seeds)) == len(seeds) == 6


def test_what_is_farther_from_the_data_measures_worse_in_both_halves():
    bench = halves()
    near, far = (bench.rows("source", Shifted(shift)) for shift in (0.0, 1.0))
    choice = LengthChoice(METRIC, {0.05: far, 0.1: near}, far)
    assert choice.best == 0.1
    difference, error = choice.against_ema(near)
    assert difference < -4 * error < 0
    assert choice.against_ema(far) == (0, 0)


def test_the_report_holds_every_metric_of_every_length_in_order():
    bench = halves(repeats=1)
    choice = LengthChoice(
        "recall", {0.2: bench.rows("a", Shifted(2.0)), 0.1: bench.rows("b", Shifted())}, bench.rows("c", Shifted())
    )
    report = choice.report()
    assert (report["metric"], report["better"], report["best"]) == ("recall", "higher", 0.1)
    assert [row["length"] for row in report["lengths"]] == [0.1, 0.2]
    for row in (report["ema"], *report["lengths"]):
        assert {"frechet_distance", "precision", "recall"} <= set(row["choosing"]) == set(row["reporting"])
    assert report["lengths"][0]["against_ema_error"] is None


def test_the_best_of_many_equal_ones_is_optimistic_where_it_was_chosen_and_not_where_it_is_reported():
    numbers = torch.randn(400, 13, 2, generator=torch.Generator().manual_seed(0)).tolist()
    chosen, reported = [], []
    for trial in numbers:
        found = {0.01 * (i + 1): rows([a], [b]) for i, (a, b) in enumerate(trial)}
        choice = LengthChoice(METRIC, found, rows([0.0], [0.0]))
        chosen += choice.values(found[choice.best], "choosing")
        reported += choice.values(found[choice.best], "reporting")
    assert sum(chosen) / 400 < -1.5  # the mean of the least of 13 standard normal numbers is -1.67
    assert abs(sum(reported) / 400) < 4 / 400**0.5


@pytest.mark.parametrize(("metric", "best"), [("frechet_distance", 0.1), ("recall", 0.05)])
def test_the_best_length_is_on_the_better_side_of_the_metric(metric, best):
    found = {0.05: [3.0, 2.0], 0.1: [1.0, 2.0]}
    lengths = {
        length: {part: [{metric: v} for v in values] for part in ("choosing", "reporting")}
        for length, values in found.items()
    }
    assert LengthChoice(metric, lengths, lengths[0.05]).best == best


@pytest.mark.parametrize("metric", ["fid", "vendi", "density", "paired_distance", "memorized_fraction"])
def test_a_metric_without_a_better_side_is_refused(metric):
    with pytest.raises(ValueError, match="frechet_distance"):
        better(metric)


def test_a_metric_that_data_does_not_have_is_refused():
    missing = rows([None], [None])
    with pytest.raises(ValueError, match="samples"):
        LengthChoice(METRIC, {0.1: missing}, missing).best  # noqa: B018


@pytest.mark.parametrize("settings", [{"n": 41}, {"n": 5}, {"repeats": 0}, {"of": 8}])
def test_impossible_numbers_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        halves(**settings)


def test_a_model_of_other_data_is_refused():
    source = Shifted()
    source.sample_shape = (3,)
    with pytest.raises(ValueError, match="EMA"):
        halves().rows("run's EMA", source)

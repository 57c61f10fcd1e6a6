"""What holds of every metric: batches, ranks, resets and order do not matter, and what cannot be measured is refused.

Metrics are discovered: a new subclass of FeatureMetric that fdistill.evaluation.metrics exports is tested here at once.
"""

import inspect

import pytest
import torch
import torch.distributed as dist
from forked import ended, fork_ranks
from torch.testing import assert_close

import fdistill.evaluation.metrics
from fdistill.evaluation.metrics import (
    DensityCoverage,
    FeatureMetric,
    KernelDistance,
    MemorizedFraction,
    ModeCoverage,
    PairedDistance,
    PrecisionRecall,
    TailDiagnostics,
    TailIndexDifference,
    VendiScore,
    density_coverage,
    kernel_distance,
    memorized_fraction,
    precision_recall,
    tail_indices,
)

pytestmark = pytest.mark.system  # seconds, too many for make check

RANKS = 2


def quadrant(points):
    """Modes 0 to 3 by the signs of the first two features; in none where the third is large."""
    label = 2 * (points[:, 0] > 0).long() + (points[:, 1] > 0).long()
    return torch.where(points[:, 2] > 1.5, -1, label)


def metrics():
    """One of each, with the arguments that some need, and variants with states of their own."""
    public = [value for value in vars(fdistill.evaluation.metrics).values() if inspect.isclass(value)]
    concrete = [
        c for c in public if issubclass(c, FeatureMetric) and not inspect.isabstract(c) and c is not FeatureMetric
    ]
    given = {"ModeCoverage": lambda: ModeCoverage(4, quadrant), "TailDiagnostics": lambda: TailDiagnostics(10)}
    found = {c.__name__: given.get(c.__name__, c)() for c in concrete}
    return found | {
        "PairedDistance, teacher kept": PairedDistance(reset_real_features=False),
        "VendiScore, relative": VendiScore(relative=True),
        "VendiScore, rbf": VendiScore(kernel="rbf", bandwidth=2.0),
        "VendiScore, relative, rbf": VendiScore(kernel="rbf", bandwidth=2.0, relative=True),
        "VendiScore, random features": VendiScore(
            kernel="rbf", bandwidth=2.0, relative=True, random_features=16, reset_real_features=False
        ),
    }


def samples():
    """Features of 40 generated and 40 real samples of unequal laws."""
    generator = torch.Generator().manual_seed(0)
    generated, real = torch.randn(2, 40, 5, generator=generator, dtype=torch.float64)
    return generated + 0.3, 1.2 * real


def share(rank, first, *sides):
    """Rank 0 has the first samples of each side, rank 1 the rest."""
    return [side[:first] if rank == 0 else side[first:] for side in sides]


def fill(metric, generated, real, batch=7):
    for side, is_real in ((generated, False), (real, True)):
        for rows in side.split(batch):
            if len(rows):
                metric.update(rows, real=is_real)
    return metric


def numbers(metric):
    """All numbers by name."""
    value = metric.compute()
    return value if isinstance(value, dict) else {"": value}


def message_of(metric):
    try:
        metric.compute()
    except ValueError as error:
        return str(error)
    return "no error"


def value_or_message(metric, generated, real):
    try:
        return numbers(fill(metric, generated, real))
    except ValueError as error:
        return str(error)


def on_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    generated, real = samples()
    results = {}
    for name, metric in metrics().items():
        fill(metric, *share(rank, 10, generated[:30], real[:30]))
        early = numbers(metric)
        fill(metric, *share(rank, 3, generated[30:], real[30:]))
        results[name] = {"early": early, "all": numbers(metric)}
    # one rank holds all of one side, or nothing at all
    for name, metric in metrics().items():
        if not name.startswith("PairedDistance"):
            fill(metric, *share(rank, 40, generated), *share(rank, 0, real))
            results[name]["a side each"] = numbers(metric)
        fill(metric := metrics()[name], *share(rank, 0, generated, real))
        results[name]["one rank idle"] = numbers(metric)
    unequal = fill(PairedDistance(), generated[: 3 + rank], real[: 4 - rank])
    results["messages"] = {"unequal pairs": message_of(unequal)}
    results["messages"] |= {name: message_of(metric) for name, metric in metrics().items()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    assert ended(fork_ranks(lambda rank: on_rank(rank, folder), folder)) == [0, 0], (folder / "rank0.log").read_text()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", metrics())
def test_two_ranks_are_one(ranks, name):
    generated, real = samples()
    early = numbers(fill(metrics()[name], generated[:30], real[:30]))
    alone = numbers(fill(metrics()[name], generated, real))
    for results in ranks:
        for moment, values in results[name].items():
            assert_close(values, early if moment == "early" else alone, rtol=1e-10, atol=1e-13)


def test_pairs_that_are_equal_in_number_only_over_all_ranks_raise_on_every_rank(ranks):
    for results in ranks:
        assert "expected as many of the one as of the other, got [-1, 1] more" in results["messages"]["unequal pairs"]


@pytest.mark.parametrize("name", metrics())
def test_without_any_sample_all_ranks_raise(ranks, name):
    for results in ranks:
        assert "generated samples before compute(), got 0" in results["messages"][name]


@pytest.mark.parametrize("name", metrics())
def test_the_size_of_the_batches_does_not_matter(name):
    generated, real = samples()
    whole = numbers(fill(metrics()[name], generated, real, batch=40))
    for batch in (1, 13):
        assert_close(numbers(fill(metrics()[name], generated, real, batch)), whole, rtol=1e-10, atol=1e-13)
    at_once = metrics()[name].of(generated, real)
    assert_close(at_once if isinstance(at_once, dict) else {"": at_once}, whole, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("metric", "function", "settings"),
    [
        (KernelDistance, kernel_distance, {"degree": 2}),
        (PrecisionRecall, precision_recall, {"k": 2, "strict": True}),
        (DensityCoverage, density_coverage, {"k": 4}),
        (TailIndexDifference, tail_indices, {"k": 0.2, "eps_neighbour": 5}),
        (MemorizedFraction, memorized_fraction, {"ratio": 0.5}),
    ],
)
def test_settings_of_a_metric_are_those_of_its_function(metric, function, settings):
    generated, real = samples()
    expected = function(generated, real, **settings)
    found = numbers(fill(metric(**settings), generated, real))
    assert list(found.values()) == list(expected if isinstance(expected, tuple) else [expected])[: len(found)]


@pytest.mark.parametrize("name", metrics())
def test_measuring_twice_or_after_a_reset_gives_the_same(name):
    generated, real = samples()
    metric = fill(metrics()[name], generated, real)
    first = numbers(metric)
    metric._computed = None  # the cache of torchmetrics
    assert_close(numbers(metric), first, rtol=1e-10, atol=1e-13)
    metric.reset()
    sides = (generated, real[:0] if not metric.reset_real_features else real)
    assert_close(numbers(fill(metric, *sides)), first, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", metrics())
def test_float32_features_are_measured_in_float64(name):
    generated, real = (side.float() for side in samples())
    values = numbers(fill(metrics()[name], generated, real))
    assert {value.dtype for value in values.values()} == {torch.float64}
    assert_close(values, numbers(fill(metrics()[name], generated.double(), real.double())), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", metrics())
def test_broken_features_are_refused_at_once(name, broken):
    generated, _ = samples()
    generated[3, 2] = broken
    for real in (False, True):
        with pytest.raises(ValueError, match="broken"):
            metrics()[name].update(generated, real=real)


@pytest.mark.parametrize("name", metrics())
def test_features_that_are_no_matrix_are_refused(name):
    with pytest.raises(ValueError, match=r"expected \[n, d\], got \[4, 1, 2\]"):
        metrics()[name].update(torch.zeros(4, 1, 2), real=False)


@pytest.mark.parametrize("name", metrics())
def test_one_sample_and_equal_samples_give_a_finite_number_or_a_clear_line(name):
    """Never a NaN, never an error of a library."""
    _, real = samples()
    for generated in (real[:1], real[:1].expand(40, 5)):
        for reference in (real, real[:1], real[:1].expand(40, 5)):
            outcome = value_or_message(metrics()[name], generated, reference)
            if isinstance(outcome, str):
                assert len(outcome.splitlines()) == 1
            else:
                assert not any(value.isnan() for value in outcome.values()), outcome


@pytest.mark.parametrize("name", metrics())
def test_a_batch_alone_has_no_value(name):
    with pytest.raises(TypeError, match="compares"):
        metrics()[name](samples()[0], real=False)

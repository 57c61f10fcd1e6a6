"""Sampling grids fall from the first noise level to the last, at the times of what they are named after."""

import inspect
import json
import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.sampling.grids import GivenGrid, KarrasGrid, PathGrid, SamplingGrid
from fdistill.theory.noise_levels import karras_grid
from fdistill.theory.paths import (
    DDPMPath,
    KineticOptimal,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VPCosine,
    VPLinear,
)

OPTIMUM = KineticOptimal([0.1, 0.7, 1.4], [0.01, 0.5, 0.2], 0.5)
GRIDS = {
    "Karras": KarrasGrid(),
    "Karras of one step": KarrasGrid(1, 0.1, 3.0, 1.0),
    "flow": PathGrid(RectifiedFlow(), 10, 80.0),
    "flow, one step": PathGrid(RectifiedFlow(), 1, 80.0),
    "linear to .01": PathGrid(VPLinear(), 10, 80.0, 0.01),
    "one step past .01": PathGrid(VPLinear(), 1, 80.0, 0.01),
    "optimum": PathGrid(OPTIMUM, 7, 80.0),
    "discrete": PathGrid(DDPMPath(), 7, 100.0, 0.02),
    "given": GivenGrid([10, 2.5, 0.0]),
    "given, noise left": GivenGrid((10.0, 2.5)),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def subclasses(cls):
    return {found for sub in cls.__subclasses__() for found in [sub, *subclasses(sub)] if not inspect.isabstract(sub)}


def test_every_grid_of_the_package_is_tried():
    ours = {cls for cls in subclasses(SamplingGrid) if cls.__module__.startswith("fdistill")}
    assert {type(grid) for grid in GRIDS.values()} == ours


@every_grid
def test_levels_fall_strictly_from_a_finite_one_in_double_precision(grid):
    levels = grid.levels()
    assert levels.dtype == torch.float64
    assert levels[0].isfinite()
    assert (levels.diff() < 0).all()
    assert levels[-1] >= 0


@every_grid
def test_a_grid_is_rebuilt_from_its_description(grid):
    again = SamplingGrid.from_spec(json.loads(json.dumps(grid.spec())))
    assert type(again) is type(grid)
    assert torch.equal(again.levels(), grid.levels())


@every_grid
def test_nobody_changes_a_grid_by_its_levels(grid):
    before = grid.levels()
    grid.levels().zero_()
    assert torch.equal(grid.levels(), before)


@every_grid
def test_steps_are_one_fewer_than_levels(grid):
    arguments = grid.spec()["init_args"]
    assert len(grid.levels()) == arguments.get("num_steps", len(grid.levels()) - 1) + 1


def test_karras_grid_is_that_of_the_noise_levels():
    assert torch.equal(KarrasGrid(9, 0.01, 50.0, 5.0).levels(), karras_grid(9, 0.01, 50.0, 5.0))


@pytest.mark.parametrize("path", [RectifiedFlow(), VPCosine(), VPLinear(), TrigFlow(0.5), OPTIMUM])
def test_path_grids_are_equally_spaced_in_the_time_of_their_path(path):
    first, last = (float(path.time(torch.tensor(s, dtype=torch.float64))) for s in (60.0, 0.01))
    down = PathGrid(path, 8, 60.0).levels()
    assert_close(path.time(down), torch.linspace(first, 0, 9, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    to_least = PathGrid(path, 8, 60.0, 0.01).levels()
    assert_close(path.time(to_least[:-1]), torch.linspace(first, last, 8, dtype=torch.float64))
    assert (float(to_least[0]), float(to_least[-2]), float(to_least[-1])) == (60.0, 0.01, 0.0)


def test_the_grid_of_trig_flow_is_equally_spaced_in_angle():
    levels = PathGrid(TrigFlow(0.5), 6, 0.5 * math.tan(1.5)).levels()
    assert_close(torch.atan(levels / 0.5), torch.linspace(1.5, 0, 7, dtype=torch.float64))


def test_the_grid_of_the_exploding_path_is_the_even_one():
    assert_close(PathGrid(VarianceExploding(), 4, 8.0).levels(), torch.tensor([8.0, 6, 4, 2, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (
            lambda: PathGrid(DDPMPath(), 5, 80.0),
            "sigma",
        ),
        (lambda: PathGrid(VPLinear(), 5, 1000.0), "VPLinear"),
        (lambda: PathGrid(DDPMPath(), 5, 500.0, 0.02), "DDPMPath"),
        (lambda: PathGrid(DDPMPath(), 5, 80.0, 0.001), "DDPMPath"),
        (lambda: PathGrid(RectifiedFlow(), 0, 80.0), "step"),
        (lambda: PathGrid(RectifiedFlow(), 5, math.inf), "finite"),
        (lambda: PathGrid(RectifiedFlow(), 5, math.nan), "finite"),
        (lambda: PathGrid(RectifiedFlow(), 5, 1.0, 1.0), "sigma_max"),
        (lambda: PathGrid(RectifiedFlow(), 5, 1.0, -0.1), "0 <= sigma_min"),
        (lambda: KarrasGrid(0), "step"),
        (lambda: KarrasGrid(5, 0.0), "0 < sigma_min"),
        (lambda: KarrasGrid(5, 0.1, math.inf), "finite"),
        (lambda: KarrasGrid(5, rho=0.0), "rho"),
        (lambda: GivenGrid([]), "at least once"),
        (lambda: GivenGrid([1.0]), "at least once"),
        (lambda: GivenGrid([1.0, 1.0, 0.0]), "falls"),
        (lambda: GivenGrid([1.0, 2.0]), "falls"),
        (lambda: GivenGrid([1.0, -0.5]), ">= 0"),
        (lambda: GivenGrid([math.inf, 1.0]), "finite"),
        (lambda: GivenGrid([1.0, math.nan]), "falls"),
    ],
)
def test_impossible_grids_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()

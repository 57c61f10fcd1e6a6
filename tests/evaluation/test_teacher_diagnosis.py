"""Both samplers are asked equally often between the same levels, from the same latents; what cannot be is refused."""

import pytest
import torch
from crowded_teacher import Crowded, ring_data, ring_teacher
from tiny_runs import mlp
from torch.testing import assert_close

from fdistill.data import Digits
from fdistill.evaluation.teacher_diagnosis import diagnose_teacher, finer_grid
from fdistill.sampling import DDIM, GDDIM, Euler, Heun
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.noise_levels import karras_grid

pytestmark = pytest.mark.system  # seconds, too many for make check

GRID = karras_grid(6, 0.02, 20.0)
QUICK = {"n": 100, "repeats": 1}


@pytest.fixture(autouse=True)
def _two_splits(monkeypatch):
    monkeypatch.setattr("fdistill.evaluation.teacher_diagnosis.usual_splits", lambda features: 2)


@pytest.mark.parametrize("sigmas", [GRID, GRID[:-1]], ids=["to 0", "to a positive level"])
def test_a_grid_twice_as_fine_has_the_geometric_means_between_its_levels(sigmas):
    steps = len(sigmas) - 1
    fine = finer_grid(sigmas, Heun().evaluations(sigmas))
    assert len(fine) - 1 == Heun().evaluations(sigmas) == Euler().evaluations(fine)
    positive = sigmas[sigmas > 0]
    assert_close(fine[: 2 * len(positive) : 2][: len(positive)], positive, rtol=1e-12, atol=0)
    assert_close(fine[1 : 2 * len(positive) - 1 : 2], (positive[1:] * positive[:-1]).sqrt(), rtol=1e-12, atol=0)
    assert fine[-1] == sigmas[-1] or sigmas[-1] > 0
    assert_close(finer_grid(sigmas, steps), sigmas, rtol=1e-12, atol=0)


def test_a_grid_of_one_level_stays_as_it_is():
    one = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert_close(finer_grid(one, 1), one)


@pytest.mark.parametrize(
    ("sampler", "steps", "ode", "evaluations"),
    [(None, None, "Heun", 35), (Euler(), None, "Euler", 18), (GDDIM(1.0), None, "Heun", 35), (None, 5, "Heun", 9)],
)
def test_both_samplers_have_equal_evaluations_and_the_ode_is_the_teachers_own(sampler, steps, ode, evaluations):
    found = diagnose_teacher(ring_teacher(sampler=sampler), ring_data(), num_steps=steps, eta=0.8, **QUICK).report
    assert found["evaluations"] == {"sde": evaluations, "ode": evaluations}
    assert (found["samplers"], found["eta"]) == ({"sde": "GDDIM", "ode": ode}, 0.8)


def test_at_almost_no_stochasticity_both_samplers_make_the_same_of_the_same_latents():
    model = ring_teacher(sampler=DDIM())
    samples = diagnose_teacher(model, ring_data(), eta=1e-6, **QUICK).samples
    assert_close(samples["sde"], samples["ode"], rtol=0, atol=1e-3)
    assert (samples["real"] - samples["ode"]).abs().max() > 1


def test_the_same_seed_finds_the_same_and_nothing_global_is_drawn():
    state = torch.get_rng_state()
    one, two = (diagnose_teacher(ring_teacher(), ring_data(), seed=3, **QUICK).report for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)


def test_the_exact_denoiser_beside_itself_has_the_same_loss_and_no_error_of_eps():
    columns = diagnose_teacher(ring_teacher(), ring_data(), **QUICK).report["see_saw"]
    assert columns["excess"] == columns["exact_excess"]
    assert max(columns["eps_error"]) == 0
    wrong = diagnose_teacher(ring_teacher(Crowded), ring_data(), **QUICK).report["see_saw"]
    high = [i for i, sigma in enumerate(wrong["sigma"]) if sigma > 2]
    assert_close(torch.tensor(wrong["eps_error"])[high], torch.full((len(high),), 0.2), rtol=1e-4, atol=0)


def test_a_teacher_that_is_told_the_class_has_no_exact_curve_of_all_classes_beside_it():
    model = GenerativeModel.teacher(mlp(num_classes=8), 4, 0.02, 80.0)
    found = diagnose_teacher(model, ring_data(), **QUICK)
    assert found.best is None
    assert "eps_error" not in found.report["see_saw"]


@pytest.mark.parametrize(
    ("model", "changes", "says"),
    [
        (lambda: GenerativeModel.student(mlp(), 2.0), {}, "checkpoint"),
        (ring_teacher, {"n": 11}, "expected 12 <= n <= 1000, got 11"),
        (ring_teacher, {"n": 1001}, "expected 12 <= n <= 1000, got 1001"),
        (ring_teacher, {"eta": 0.0}, "stochasticity"),
        (ring_teacher, {"repeats": 0}, "repeats"),
        (ring_teacher, {"data": Digits()}, "data"),
    ],
)
def test_what_cannot_be_compared_is_refused(model, changes, says):
    with pytest.raises(ValueError, match=says):
        diagnose_teacher(model(), **{"data": ring_data(), **QUICK, **changes})


def test_a_teacher_of_latents_is_refused():
    model = ring_teacher()
    model.decoder = object()
    with pytest.raises(ValueError, match="decoder"):
        diagnose_teacher(model, ring_data(), **QUICK)

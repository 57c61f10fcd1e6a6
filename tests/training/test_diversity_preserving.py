"""DP-DMD: what the first step learns, and that the others leave it alone."""

import copy

import pytest
import torch
from tiny_runs import Recorded, distillation, exact, fit, mlp, moved, weights

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import TwoExperts
from fdistill.objectives import DMD2, DiffInstruct, DiversityPreserving
from fdistill.sampling import Euler, Heun, Renoising
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM
from fdistill.training.anchor import Anchor

FIRST, LATER = 2.0, (0.8, 0.3)
MEAN, STD = 0.7, 0.5


def teacher_of(denoiser, steps=200, sampler=None, high=FIRST):
    return GenerativeModel.teacher(denoiser, steps, 0.002, high, sampler=sampler or Heun())


def of_a_gaussian(after, start="sigma", **how):
    """Anchors of standard normal noise in float64, and that noise."""
    gaussian = exact([[MEAN, MEAN]], [STD]).double()
    anchor = Anchor.of(
        DiversityPreserving(DiffInstruct(), after=after), teacher_of(gaussian, **how), (FIRST, 0.5), start
    )
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return anchor(gaussian, z, Condition(), 1.0), z, float(anchor.sigmas[-1])


@pytest.mark.parametrize("start", ["sigma", "unit"])
@pytest.mark.parametrize("after", [1, 60, 200])
def test_an_anchor_is_where_euler_has_to_aim_to_meet_the_flow_of_a_gaussian(after, start):
    """The flow: x_s = m + sqrt((v + s^2) / (v + s_1^2)) (x_1 - m). After the last step the anchor is the sample."""
    found, z, level = of_a_gaussian(after, start)
    x = (FIRST if start == "sigma" else (1 + FIRST**2) ** 0.5) * z
    x_s = MEAN + ((STD**2 + level**2) / (STD**2 + FIRST**2)) ** 0.5 * (x - MEAN)
    torch.testing.assert_close(found + level / FIRST * (x - found), x_s, rtol=0, atol=1e-3)
    if after == 200:
        torch.testing.assert_close(found, x_s, rtol=0, atol=1e-3)


def test_after_one_step_of_euler_the_anchor_is_the_teacher_s_own_first_step():
    found, z, _ = of_a_gaussian(1, sampler=Euler())
    gaussian = exact([[MEAN, MEAN]], [STD]).double()
    torch.testing.assert_close(found, gaussian(FIRST * z, torch.full((64,), FIRST).double()), rtol=1e-12, atol=1e-12)


def test_the_error_to_an_anchor_that_is_met_has_no_gradient():
    x = torch.randn(8, 2, dtype=torch.float64).requires_grad_()
    error = (x - x.detach()).square().mean()
    assert torch.equal(torch.autograd.grad(error, x)[0], torch.zeros_like(x))


def turn(weight, met=False):
    """Changes of the first step's and of the later steps' weights by one turn of plain descent, and the module before.

    The student has an expert for the first noise level and one for the others; `met` puts the anchor where it is.
    """
    split = float(EDM(1.0).coefficients(torch.tensor([1.0])).noise)
    student = Denoiser(TwoExperts(mlp(seed=1).network, mlp(seed=2).network, split), EDM(1.0))
    module = distillation(
        teacher_of(mlp()),
        DiversityPreserving(DMD2(0.1), weight),
        student=student,
        renoise_levels=LATER,
        student_optimizer=Recorded,
        gradient_clip=1e9,
    )
    if met:
        levels = torch.full((32,), FIRST)
        module.anchor = lambda teacher, z, condition, guidance: module.student(FIRST * z, levels).detach()
    before = copy.deepcopy(module.student.network)
    fit(module, 1)
    after = module.student.network
    return [
        torch.cat([(a - b).flatten() for a, b in zip(new.parameters(), old.parameters(), strict=True)]).detach()
        for new, old in ((after.high, before.high), (after.low, before.low))
    ]


def test_the_matching_term_sends_no_gradient_through_the_first_step():
    first, later = turn(0.5, met=True)
    assert torch.equal(first, torch.zeros_like(first))
    assert later.abs().max() > 0


def test_the_first_step_descends_the_weighted_error_and_the_others_do_not_see_it():
    (first, later), (twice, same) = turn(0.5), turn(1.0)
    assert torch.equal(later, same)
    torch.testing.assert_close(twice, 2 * first, rtol=1e-3, atol=1e-6)
    assert first.abs().max() > 1e-3


def test_the_first_step_s_update_is_the_gradient_of_the_published_regression():
    """In float64, by autograd from the student's weights."""
    student, gaussian = mlp(seed=1).double(), exact([[MEAN, MEAN]], [STD]).double()
    anchor = Anchor.of(DiversityPreserving(DiffInstruct(), after=3), teacher_of(gaussian, 20), (FIRST, 0.5), "sigma")
    z = torch.randn(16, 2, dtype=torch.float64)
    target, sigma, level = anchor(gaussian, z, Condition(), 1.0), torch.full((16,), FIRST).double(), anchor.sigmas[-1]
    x = student(FIRST * z, sigma)
    ours = torch.autograd.grad((x - target).square().mean(), list(student.parameters()), retain_graph=True)
    state = Heun()(gaussian, z, anchor.sigmas)
    velocity, wanted = (FIRST * z - x) / FIRST, (FIRST * z - state) / (FIRST - level)  # dx/dsigma of a straight step
    published = torch.autograd.grad(FIRST**2 * (velocity - wanted).square().mean(), list(student.parameters()))
    for one, other in zip(ours, published, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_at_weight_0_it_is_the_objective_to_the_last_bit():
    ended = []
    for objective in (DMD2(0.1), DiversityPreserving(DMD2(0.1), 0.0)):
        module = distillation(objective=objective, renoise_levels=LATER, turn="alternating", fake_updates_per_student=1)
        fit(module, 6)
        ended.append(weights(module))
    assert all(torch.equal(ended[0][name], value) for name, value in ended[1].items())


def test_every_turn_makes_two_steps_at_least_and_all_of_them_learn():
    module = distillation(objective=DiversityPreserving(DMD2(0.1)), student=mlp(seed=1), renoise_levels=LATER)
    assert module.least_steps() == 2
    before = weights(module)
    fit(module, 2)
    assert moved(before, module, "student")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"renoise_levels": ()}, "renoise_levels"),
        ({"teacher": teacher_of(mlp(), 4)}, "at most 4"),
        ({"teacher": teacher_of(mlp(), sampler=Renoising())}, "Renoising"),
    ],
)
def test_what_has_no_trajectory_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        distillation(**{"objective": DiversityPreserving(DMD2()), "renoise_levels": LATER} | changes)


def test_an_anchor_after_no_step_is_refused():
    with pytest.raises(ValueError, match="after"):
        DiversityPreserving(DMD2(), after=0)

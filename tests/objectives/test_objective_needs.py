"""`needs` is honest: what is not asked for is not used, what is asked for is, and "value" means without gradient."""

import pytest
import torch
from exact_problem import UPDATE, problem_2d
from objective_claims import ALL, exact_samples, expected_gradients, label, only_what_is_needed
from torch.testing import assert_close

from fdistill.objectives import Needs, NoisedSamples, Objective, SiD, TiltedTeacher

pytestmark = pytest.mark.system  # seconds, too many for make check

INPUTS = {
    "teacher": "teacher",
    "fake_score": "fake_score",
    "ratio": "log_ratio",
    "logit": "logit",
    "pairs": "regression",
    "latents": "latents",
    "anchor": "first",
}
FIXED = [claim for claim in ALL if claim.objective.at(UPDATE) is claim.objective]


def everything():
    """Problem, shares and samples on which every input depends on the student, the log ratio too."""
    problem = problem_2d("affine", 0.3)
    share, samples = exact_samples(problem)
    return problem, share, samples._replace(log_ratio=samples.logit)


def gradients(objective, samples):
    problem, share, _ = everything()
    return expected_gradients(objective, problem, share, samples)


@pytest.mark.parametrize("claim", ALL, ids=label)
def test_what_is_not_asked_for_changes_no_gradient(claim):
    samples = everything()[2]
    needed = only_what_is_needed(
        samples._replace(log_ratio=samples.log_ratio.detach()), claim.objective.at(UPDATE).needs
    )
    found, expected = (gradients(claim.objective, given) for given in (needed, samples))
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("claim", FIXED, ids=label)
def test_what_is_asked_for_is_used(claim):
    samples, needs = everything()[2], claim.objective.needs
    for asked, name in INPUTS.items():
        if getattr(needs, asked) not in (False, "nothing"):
            with pytest.raises((TypeError, AttributeError)):
                claim.objective.loss(samples._replace(**{name: None}))
        if getattr(needs, asked) == "gradient":
            still = samples._replace(**{name: getattr(samples, name).detach()})
            if isinstance(claim.objective, TiltedTeacher) and name == "teacher":
                with pytest.raises(RuntimeError, match="grad"):
                    claim.objective.loss(still)
                continue
            found, expected = (gradients(claim.objective, given)["student"] for given in (still, samples))
            assert (found - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("claim", ALL, ids=label)
def test_every_term_is_one_number_per_sample(claim):
    samples = everything()[2]
    loss = claim.objective.loss(samples)
    assert {tuple(term.value.shape) for term in loss.terms.values()} == {tuple(samples.sigma.shape)}
    assert loss.sample_weight is None or loss.sample_weight.shape == samples.sigma.shape


@pytest.mark.parametrize("claim", ALL, ids=label)
def test_description_builds_the_same_objective(claim):
    again = Objective.from_spec(claim.objective.spec())
    assert type(again) is type(claim.objective)
    assert (again.spec(), again.needs) == (claim.objective.spec(), claim.objective.needs)


@pytest.mark.parametrize(
    ("needs", "discriminator", "input_gradient"),
    [
        (Needs("value", "value"), False, False),
        (Needs("value", "value", ratio=True), True, False),
        (Needs(logit=True), True, True),
        (Needs("value", "gradient"), False, True),
        (Needs("gradient", "value"), False, True),
    ],
)
def test_discriminator_and_input_gradient_follow_from_what_is_asked(needs, discriminator, input_gradient):
    assert (needs.discriminator, needs.real, needs.input_gradient) == (discriminator, discriminator, input_gradient)


def test_needs_together_serve_both():
    one, other = Needs("value", "gradient", pairs=True), Needs("gradient", "nothing", ratio=True)
    assert one.together(other) == other.together(one) == Needs("gradient", "gradient", ratio=True, pairs=True)
    assert one.together(Needs()) == one.together(one) == one


def test_inputs_named_here_are_all_there_are():
    assert set(INPUTS) == set(Needs._fields)


def test_what_the_needs_do_not_ask_for_is_refused_by_one_line():
    one = torch.ones(1)
    with pytest.raises(TypeError, match="needs"):
        SiD().loss(NoisedSamples(one, one, one, 1.0, teacher=one))

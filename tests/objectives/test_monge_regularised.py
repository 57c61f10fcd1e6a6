"""The Monge gap beside an objective: its own gradient on top, within classes, computed only where it counts."""

import math
from unittest import mock

import pytest
import torch

from fdistill.evaluation.metrics import monge_gap
from fdistill.models.condition import Condition
from fdistill.objectives import DiffInstruct, MongeRegularised, NoisedSamples, Objective, SiD, WarmStarted
from fdistill.theory.schedules import Linear


def samples(n=24, shape=(3, 2), labels=None, dtype=torch.float64):
    """A batch of which z is turned and moved into x, and whose networks agree."""
    z, noise = torch.randn(2, n, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = (0.5 * noise - z).requires_grad_()
    sigma = torch.ones(n, dtype=dtype)
    condition = Condition({} if labels is None else {"labels": labels})
    networks = {"teacher": x.detach(), "fake_score": x.detach()}
    return NoisedSamples(x, x.detach(), sigma, 1.0, condition, latents=z, **networks)


def test_it_adds_the_gradient_of_the_gap_per_entry_and_leaves_that_of_the_objective():
    at = samples()
    terms = MongeRegularised(DiffInstruct(), 0.3, 2.0).loss(at).terms
    assert set(terms) == {"student", "monge"}
    assert torch.equal(terms["student"].value, DiffInstruct().loss(at).terms["student"].value)
    (found,) = torch.autograd.grad(terms["monge"].weight * terms["monge"].value.mean(), at.x)
    (expected,) = torch.autograd.grad(0.3 * monge_gap(at.latents, at.x, 2.0) / 6, at.x)
    torch.testing.assert_close(found, expected)
    assert found.norm() > 0.01


def test_maps_of_each_class_are_left_apart():
    labels = torch.arange(24) % 2
    at = samples(labels=labels)
    optimal = at._replace(x=at.latents + 9 * (labels.double()[:, None, None]))
    objective = MongeRegularised(DiffInstruct(), 1.0)
    assert objective.loss(optimal).terms["monge"].value.abs().max() < 1e-12
    assert objective.loss(optimal._replace(condition=Condition())).terms["monge"].value.min() > 0.01


def test_a_weight_of_nought_asks_for_nothing():
    objective = MongeRegularised(DiffInstruct(), 0.0)
    assert objective.needs == DiffInstruct().needs
    with mock.patch("fdistill.objectives.monge.monge_gap", side_effect=AssertionError("nobody asked")):
        assert set(objective.loss(samples()).terms) == {"student"}


def test_the_weight_may_follow_the_updates_of_the_student():
    ramp = MongeRegularised(DiffInstruct(), Linear(0.0, 1.0, 100))
    assert ramp.needs.latents
    assert [ramp.loss(samples()._replace(update=n)).terms["monge"].weight for n in (0, 50, 100)] == [0.0, 0.5, 1.0]


def test_it_stays_while_its_objective_changes():
    early, late = DiffInstruct(), SiD()
    both = MongeRegularised(WarmStarted(late, early, 5), 0.4, 0.1)
    assert (both.at(4).objective, both.at(5).objective) == (early, late)
    assert (both.at(5).weight, both.at(5).epsilon) == (0.4, 0.1)
    assert both.at(4).needs == early.needs._replace(latents=True)
    assert Objective.from_spec(both.spec()).spec() == both.spec()


def test_samples_that_are_not_finite_are_left_to_the_guarded_step():
    at = samples()
    broken = at._replace(x=torch.full_like(at.x, math.nan).requires_grad_())
    value = MongeRegularised(DiffInstruct(), 1.0).loss(broken).terms["monge"].value
    assert value.isnan().all()


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_a_term_has_the_precision_of_the_samples(epsilon):
    at = samples(dtype=torch.float32)
    value = MongeRegularised(DiffInstruct(), 1.0, epsilon).loss(at).terms["monge"].value
    assert value.dtype == torch.float32
    assert value.shape == (24,)

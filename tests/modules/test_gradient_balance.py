"""The two terms of the student's loss are compared where they meet: at the generated image."""

import math

import pytest
from test_callbacks import Memory
from tiny_runs import distillation, fit

BALANCE = "image_gradient/balance"


def logged(turns, **changes):
    memory = Memory()
    fit(distillation(**changes), turns, logger=memory, log_every_n_steps=1)
    return memory


def test_the_balance_is_the_adversarial_over_the_matching_gradient():
    memory = logged(5, adversarial_weight=0.3)
    matching, adversarial = (memory.of(f"image_gradient/{term}") for term in ("matching", "adversarial"))
    found = memory.of(BALANCE)
    assert found.keys() == {1, 2, 3, 4}
    assert all(found[turn] == pytest.approx(adversarial[turn] / matching[turn], rel=1e-6) for turn in found)
    assert matching[0] == 0, "the first fake score is the teacher itself: there is nothing to compare with"


def test_it_is_proportional_to_the_adversarial_weight():
    one, two = (logged(2, adversarial_weight=weight, fake_score_warmup=1).of(BALANCE) for weight in (0.1, 0.2))
    assert two[1] == pytest.approx(2 * one[1], rel=1e-5)
    assert math.isfinite(one[1])


def test_without_an_adversarial_term_there_is_no_balance():
    memory = logged(3)
    assert memory.of("image_gradient/matching")
    assert memory.of(BALANCE) == {}

"""The two terms of the student's loss are compared where they meet: at the generated image."""

import json
import math

import pytest
import torch
from tiny_runs import distillation, fit

from fdistill.objectives import Balance, NoisedSamples, StudentLoss, Term
from fdistill.training.loggers import JsonlLogger
from fdistill.training.student_gradient import student_gradient


def logged(turns, folder, prefix="image_gradient/", **changes):
    """Values by turn and by what follows the prefix in their names."""
    fit(distillation(**changes), turns, logger=JsonlLogger(str(folder)), log_every_n_steps=1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {name.removeprefix(prefix): line[name] for name in line if name.startswith(prefix)}
        for line in lines
    }


def test_the_balance_is_the_adversarial_over_the_matching_gradient(tmp_path):
    first, *later = logged(5, tmp_path, adversarial_weight=0.3).values()
    assert len(later) == 4
    assert all(seen["balance"] == pytest.approx(seen["adversarial"] / seen["matching"], rel=1e-6) for seen in later)
    assert first["matching"] == 0, "the first fake score is the teacher itself"
    assert "balance" not in first, "there is nothing to compare with"


def test_it_is_proportional_to_the_adversarial_weight(tmp_path):
    one, two = (
        logged(2, tmp_path / str(weight), adversarial_weight=weight, fake_score_warmup=1)[1] for weight in (0.1, 0.2)
    )
    assert two["balance"] == pytest.approx(2 * one["balance"], rel=1e-5)
    assert math.isfinite(one["balance"])


def test_without_an_adversarial_term_there_is_no_balance(tmp_path):
    assert all(seen.keys() == {"matching", "adversarial"} for seen in logged(3, tmp_path).values())


def test_a_balanced_weight_keeps_the_adversarial_gradient_at_its_share_of_the_others(tmp_path):
    first, *later = logged(5, tmp_path, adversarial_weight=Balance(0.25)).values()
    assert first["adversarial"] == first["matching"] == 0, "the first fake score is the teacher itself"
    assert [seen["balance"] for seen in later] == pytest.approx([0.25] * 4, rel=1e-6)


def test_a_balanced_weight_is_that_constant_weight_which_has_its_share(tmp_path):
    runs = {
        weight: logged(2, tmp_path / name, adversarial_weight=weight, fake_score_warmup=1)[1]
        for name, weight in (("constant", 0.1), ("none", 0.0))
    }
    balanced = logged(
        2, tmp_path / "share", adversarial_weight=Balance(runs[0.1]["balance"]), fake_score_warmup=1, prefix=""
    )[1]
    assert balanced["adversarial_weight"] == pytest.approx(0.1, rel=1e-5)
    assert balanced["image_gradient/adversarial"] == pytest.approx(runs[0.1]["adversarial"], rel=1e-5)
    assert balanced["image_gradient/matching"] == pytest.approx(runs[0.0]["matching"], rel=1e-6)


def descended(terms, x):
    """Gradient at x of the terms' sum, and what is logged."""
    found = student_gradient(StudentLoss(terms), NoisedSamples(x, x, x.new_ones(len(x)), 1.0))
    return found.x, found.log


def test_a_share_is_of_all_other_terms_together_in_whatever_order():
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    adversarial = Term(x.tanh().sum(1), share=0.5)
    fixed = {"student": Term(x.square().sum(1)), "reward": Term(x.sin().sum(1), 3.0)}
    g = (2 * x + 3 * x.cos()).detach() / 6
    a = (1 - x.tanh().square()).detach() / 6
    expected = g + 0.5 * g.norm() / a.norm() * a
    for terms in ({**fixed, "adversarial": adversarial}, {"adversarial": adversarial, **fixed}):
        gradient, log = descended(terms, x)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
        assert float(log["adversarial_weight"]) == pytest.approx(0.5 * float(g.norm() / a.norm()), rel=1e-12)


@pytest.mark.parametrize(("matching", "adversarial"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_share_beside_gradients_of_zero_is_no_nan(matching, adversarial):
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    terms = {"student": Term(matching * x.sum(1)), "adversarial": Term(adversarial * x.sum(1), share=0.5)}
    gradient, log = descended(terms, x)
    torch.testing.assert_close(gradient, torch.full_like(x, matching * (1 + 0.5 * adversarial) / 2))
    assert math.isfinite(log["adversarial_weight"])

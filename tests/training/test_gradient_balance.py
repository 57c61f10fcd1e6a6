"""The two terms of the student's loss are compared where they meet: at the generated image."""

import json
import math

import pytest
from tiny_runs import distillation, fit

from fdistill.training.loggers import JsonlLogger


def logged(turns, folder, **changes):
    """Values by turn and name of image_gradient/."""
    fit(distillation(**changes), turns, logger=JsonlLogger(str(folder)), log_every_n_steps=1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    prefix = "image_gradient/"
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

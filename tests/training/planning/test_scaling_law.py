"""A law speaks of runs of its problem, inside of what was measured, and says of all others why it does not."""

import json

import numpy as np
import pytest
import torch
from tiny_runs import GivenData, distillation

from fdistill.objectives import DMD2
from fdistill.training.planning import plan_run
from fdistill.training.planning.hardware import Gpu
from fdistill.training.planning.power_law import PowerLaw
from fdistill.training.planning.scaling_law import ScalingLaw, packaged_law, quote

DATA = GivenData(torch.zeros(8, 2))
RATES = Gpu(*[1e9] * 6)


def law(module, **changes):
    """L = 1 + 2 (D / 100)^-1 / 2 for students and teachers around this module's size, by 32 to 320 samples."""
    weights = sum(p.numel() for p in module.student.parameters())
    sizes = {name: (weights / 2, weights * 2) for name in ("student", "teacher")}
    row = [0.0, np.log(0.5), 1.0]
    found = PowerLaw({"samples": 100.0}, sizes | {"samples": (32.0, 320.0)}, np.array([row] * 21), 0.1, {"student": ""})
    arguments = {
        "problem": {"data": "GivenData", "objective": "FDistill", "steps": 1},
        "measured": {"divergence": "JensenShannon", "network": "MLP", "sigma_init": 2.0, "batch_size": 8},
        "laws": {"distance": found},
        "unknown": {"recall": "cannot say: no trend"},
        "held_out": "tried",
    }
    return ScalingLaw(**arguments | changes)


def quoted(module, turns=20, known=None):
    return quote(known or law(distillation()), module, DATA, plan_run(module, 8, turns, RATES))


def test_inside_of_its_range_it_predicts_an_interval_by_the_samples_of_the_run():
    found = quoted(distillation())
    assert found.predicted["distance"].value == pytest.approx(1 + 0.5 * 100 / 160)
    assert found.predicted["distance"].low == pytest.approx(
        found.predicted["distance"].value * np.exp(-0.196), rel=0.05
    )
    assert found.reasons == ()


def test_what_differs_from_the_measured_runs_is_named_beside_the_numbers():
    found = quoted(distillation(sigma_init=5.0))
    assert found.reasons == ("sigma_init 5.0, not 2.0",)
    assert found.predicted


@pytest.mark.parametrize(
    ("module", "turns", "reason"),
    [
        (distillation(), 41, "samples 328 is not within 32 to 320"),
        (distillation(), 3, "samples 24 is not within 32 to 320"),
        (distillation(objective=DMD2()), 20, "objective DMD2, not FDistill"),
        (distillation(renoise_levels=[1.0]), 20, "steps 2, not 1"),
    ],
    ids=["longer", "shorter", "objective", "steps"],
)
def test_elsewhere_there_is_a_reason_and_no_number(module, turns, reason):
    found = quoted(module, turns)
    assert reason in found.reasons
    assert not found.predicted


def test_other_data_are_another_problem():
    known = law(distillation(), problem={"data": "Digits", "objective": "FDistill", "steps": 1})
    found = quoted(distillation(), known=known)
    assert found.reasons == ("data GivenData, not Digits",)
    assert not found.predicted


def test_the_packaged_law_is_read_and_is_of_digits():
    found = packaged_law()
    assert found.problem["data"] == "Digits"
    assert set(found.laws) | set(found.unknown) == {"distance", "missed_recall", "fake_score_loss"}
    assert ScalingLaw.from_json(json.loads(json.dumps(found.to_json()))).problem == found.problem
    for each in found.laws.values():
        assert set(each.ranges) == {"student", "teacher", "samples"}

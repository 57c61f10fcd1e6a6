"""docs/objectives.md is what its script writes of the code, and every YAML block in it builds a run."""

import math
import re
import sys
from pathlib import Path

import objectives_table as tool
import pytest
import torch
import yaml
from cli_runs import CONFIGS
from repository import ROOT

from fdistill.cli.fit import run_trainer
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.objectives import FDistill
from fdistill.theory.divergences import (
    AlphaDivergence,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
)
from fdistill.training import DistillationModule

SCRIPT = ROOT / "tools" / "objectives_table.py"
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_document_is_what_the_script_writes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["objectives_table.py", "--check"])
    assert tool.main() == 0, "run python tools/objectives_table.py"


def test_the_check_fails_for_a_stale_document_and_writes_nothing(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "docs" / "objectives.md"
    stale.parent.mkdir()
    stale.write_text(tool.DOCUMENT.read_text(encoding="utf-8").replace("ForwardKL", "BackwardKL"), encoding="utf-8")
    before = stale.read_bytes()
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "DOCUMENT", stale)
    monkeypatch.setattr(sys, "argv", ["objectives_table.py", "--check"])
    assert (tool.main(), stale.read_bytes()) == (1, before)
    assert "stale" in capsys.readouterr().err


def test_a_class_without_words_stops_the_script():
    with pytest.raises(ValueError, match="JensenShannon"):
        tool.in_order({"Nobody": "-"}, [JensenShannon], "WORDS")


def test_a_formula_that_is_not_the_weight_stops_the_script(monkeypatch):
    monkeypatch.setitem(tool.WEIGHTS, "JensenShannon", "1 / (1 + r)")
    with pytest.raises(ValueError, match="JensenShannon"):
        tool.checked_formula(JensenShannon())


def test_a_document_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="minimised"):
        tool.filled("nothing")


# closed forms between unit Gaussians at distance d; the softened and Jensen-Shannon numbers are the literature's
VARIANCES = {
    ReverseKL(): 0.0,
    SoftenedReverseKL(): 0.1029,
    JensenShannon(): 1.2242,
    SquaredHellinger(): math.exp(1) - 1,
    ForwardKL(): math.exp(4) - 1,
    Jeffreys(): (math.exp(4) - 1) / 4,
}


@pytest.mark.parametrize("divergence", VARIANCES, ids=lambda d: type(d).__name__)
def test_variance_of_the_weight_is_the_closed_form(divergence):
    assert tool.weight_variance(divergence) == pytest.approx(VARIANCES[divergence], rel=1e-3, abs=1e-12)


# f'(inf) - f'(1) and f(0) - f(1) + f'(1) over f''(1)
MODES = {
    ReverseKL(): (1, math.inf, "seeking"),
    SoftenedReverseKL(): (2 * (1 - math.log(2)), math.inf, "seeking"),
    JensenShannon(): (2 * math.log(2), 2 * math.log(2), "between"),
    ForwardKL(): (math.inf, 1, "covering"),
    Jeffreys(): (math.inf, math.inf, "neither is allowed"),
    AlphaDivergence(0.25): (4 / 3, 4, "between"),
}


@pytest.mark.parametrize("divergence", MODES, ids=lambda d: type(d).__name__)
def test_costs_of_missed_and_invented_modes_are_the_ends_of_f(divergence):
    found = tool.behaviour(divergence)
    missed, invented, word = MODES[divergence]
    assert found.word == word
    assert found.missed == pytest.approx(missed, rel=1e-5)
    assert found.invented == pytest.approx(invented, rel=1e-5)


def test_needs_are_told_with_their_conditions():
    words = [tool.needed(FDistill, what) for what in ("teacher", "ratio", "logit", "real", "pairs")]
    adversarial = "`adversarial_weight`"
    assert words == [
        "value",
        "unless reverse KL",
        f"with {adversarial}",
        f"unless reverse KL without {adversarial}",
        "no",
    ]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_of_the_document_builds_a_run(block, teacher_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "pairs:" in block:
        x = torch.zeros(4, 1, 8, 8)
        Path("runs").mkdir()
        TeacherPairs(x, x.clone(), torch.arange(4)).save(yaml.safe_load(block)["model"]["init_args"]["pairs"])
    Path("block.yaml").write_text(block, encoding="utf-8")
    configs = [CONFIGS / "trainer.yaml", CONFIGS / "quickstart" / "student.yaml", "block.yaml"]
    flags = [part for config in configs for part in ("--config", str(config))]
    cli = run_trainer([*flags, f"--model.teacher={teacher_checkpoint}", "--trainer.accelerator=cpu"], run=False)
    assert isinstance(cli.model, DistillationModule)
    asked = yaml.safe_load(block).get("model", {}).get("init_args", {}).get("objective")
    assert asked is None or type(cli.model.objective).__name__ == asked["class_path"]


def test_there_are_blocks_to_build():
    assert len(BLOCKS) > 10

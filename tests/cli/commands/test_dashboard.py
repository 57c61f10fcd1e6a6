"""fdistill dashboard: a page from run folders, and the same panels as a W&B workspace that is built offline."""

import json

import pytest
from cli_runs import fdistill, one_error_line, succeeds

from fdistill.evaluation.report.panels import GROUPS, PICTURES


def run_folder(folder):
    folder.mkdir()
    lines = [{"step": 0, "loss/student": 1.0}, {"step": 20, "loss/student": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_become_one_page(tmp_path):
    runs = [run_folder(tmp_path / name) for name in ("js", "kl")]
    assert succeeds("dashboard", *runs, "--out", tmp_path / "new" / "page.html") == f"wrote {tmp_path}/new/page.html\n"
    page = (tmp_path / "new" / "page.html").read_text()
    assert "<title>js, kl</title>" in page
    assert "not how good the pictures are" in page


def test_what_is_missing_is_said_in_one_line(tmp_path):
    outcome = fdistill("dashboard")
    assert outcome.status == 2
    assert "needs run folders, or --wandb ENTITY/PROJECT: got neither" in one_error_line(outcome)
    assert "is no run folder" in one_error_line(fdistill("dashboard", tmp_path))
    outcome = fdistill("dashboard", "--wandb", "me")
    assert outcome.status == 2
    assert "names a project as ENTITY/PROJECT: got 'me'" in one_error_line(outcome)


def test_the_help_lists_it():
    assert "dashboard" in succeeds("--help")
    assert "[runs ...]" in succeeds("dashboard", "--help")


def test_the_workspace_has_the_same_panels(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    from fdistill.evaluation.report.workspace import workspace

    monkeypatch.setenv("HOME", str(tmp_path))
    built = workspace("me", "digits")
    assert (built.entity, built.project) == ("me", "digits")
    assert [section.name for section in built.sections] == [PICTURES.title, *(group.title for group in GROUPS)]
    assert built.sections[0].panels[1].media_keys == ["samples/grid", "diagnosis/ratio", "diagnosis/see_saw"]
    for section, group in zip(built.sections[1:], GROUPS, strict=True):
        said, *plots = section.panels
        assert [plot.title for plot in plots] == [panel.title for panel in group.panels]
        assert {plot.x for plot in plots} == {"trainer/global_step"}
        assert all(panel.well in said.markdown for panel in group.panels)
        assert all(plot.y or plot.metric_regex for plot in plots)
    distance = next(p for s in built.sections for p in s.panels if getattr(p, "title", "") == "Fréchet distance")
    assert distance.y == ["metric/frechet_distance", "metric_teacher/frechet_distance", "metric_floor/frechet_distance"]
    assert built._to_model().spec.section.panel_bank_config.sections  # what would be sent can be made


def test_saving_a_workspace_without_a_login_is_one_clear_error(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    assert "needs a login" in one_error_line(fdistill("dashboard", "--wandb", "me/digits"))


def test_without_wandb_workspaces_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    line = one_error_line(fdistill("dashboard", "--wandb", "me/digits"))
    assert "is not installed; pip install 'fdistill[dashboard]'" in line

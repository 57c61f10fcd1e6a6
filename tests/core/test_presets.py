"""Configurations and checkpoints are found by name, and what lies in the working directory wins."""

from cli_runs import fdistill, one_error_line, succeeds
from repository import ROOT

from fdistill.core.presets import checkpoint, checkpoints, configuration, configurations
from fdistill.io.load import load_model


def test_every_configuration_has_its_path_as_a_name():
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert sorted(configurations().values()) == files
    assert all(configuration(name) == configuration(f"{name}.yaml") == file for name, file in configurations().items())
    assert {"trainer", "quickstart/student"} <= configurations().keys()


def test_a_file_of_the_working_directory_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = configurations()["trainer"]
    assert configuration("trainer") == shipped
    (tmp_path / "trainer").mkdir()  # a folder is no configuration
    assert configuration("trainer") == shipped
    (tmp_path / "trainer.yaml").write_text("trainer: {}\n")
    assert (tmp_path / configuration("trainer")).samefile(tmp_path / "trainer.yaml")
    assert str(configuration("nowhere")) == "nowhere"


def test_a_folder_of_the_working_directory_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(checkpoints()) == {"captions-student", "digits-student", "digits-teacher", "fashion-student"}
    assert checkpoint("digits-student") == ROOT / "checkpoints" / "digits-student"
    assert load_model("digits-student").kind == "student"
    (tmp_path / "digits-student").mkdir()
    assert (tmp_path / checkpoint("digits-student")).samefile(tmp_path / "digits-student")


def test_the_list_has_every_name_with_a_line_of_its_own():
    lines = [line.split(maxsplit=1) for line in succeeds("presets").splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == [*configurations(), *checkpoints()]
    assert all(len(line) == 2 for line in lines)
    assert all(
        line[1].startswith(("A one-step generator: ", "A diffusion model: ")) for line in lines[-len(checkpoints()) :]
    )


def test_a_name_that_is_none():
    assert "fdistill presets" in one_error_line(fdistill("fit", "--config", "quickstart/nobody"))

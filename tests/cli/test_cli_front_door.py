"""The front door: help, unknown commands, --import, --debug, exit statuses."""

import os
import subprocess
import sys

import pytest
from cli_runs import fdistill, fdistill_process, one_error_line, python_process

from fdistill.cli.commands import VERBS, UsageError
from fdistill.cli.main import one_line


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(flag):
    outcome = fdistill(flag)
    assert outcome.status == 0
    assert all(f"\n  {name} " in outcome.out for name in ["fit", "validate", "test", "predict", *VERBS])
    assert max(map(len, outcome.out.splitlines())) <= 110


def test_no_command_prints_the_help_and_fails():
    assert fdistill().status == 2
    assert fdistill().out == fdistill("--help").out


def test_help_needs_no_heavy_import():
    heavy = "{'torch', 'lightning', 'diffusers', 'numpy', 'scipy'}"
    code = f"import sys; from fdistill.cli.main import main; main(['--help']); print({heavy} & sys.modules.keys())"
    outcome = python_process(code)
    assert outcome.err == ""
    assert outcome.out.splitlines()[-1] == "set()"


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help_that_explains_every_option(verb):
    outcome = fdistill(verb, "--help")
    assert outcome.status == 0
    assert "show this help message" in outcome.out.lower()
    assert "(type: " not in [line.strip()[:7] for line in outcome.out.splitlines() if line.startswith("  --")]


def test_unknown_command():
    line = one_error_line(fdistill("fitt"))
    assert line.startswith("there is no command 'fitt'; did you mean fit? expected one of fit, ")


def test_unknown_command_in_a_process():
    outcome = fdistill_process("destil")
    assert outcome.status == 2
    assert one_error_line(outcome).startswith("there is no command 'destil'")


def test_import_of_nothing():
    assert one_error_line(fdistill("--import")) == "--import needs the name of a module"
    assert one_error_line(fdistill("--import", "no_such_module_here", "doctor")) == (
        "--import no_such_module_here: there is no such module here or among the installed ones"
    )


def test_import_looks_in_the_working_directory_but_does_not_hide_libraries(tmp_path, monkeypatch):
    (tmp_path / "plug_in_of_a_user.py").write_text("print('imported')\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('this is no library')\n")
    monkeypatch.chdir(tmp_path)
    outcome = fdistill_process("--import", "plug_in_of_a_user", "--help", PYTHONSAFEPATH="1")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("imported\nusage: fdistill")


def test_module_that_fails_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "torn_plug_in.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = one_error_line(fdistill("--import", "torn_plug_in", "doctor"))
    assert "No module named 'no_such_dependency'" in line


def test_debug_adds_the_traceback():
    outcome = fdistill("sample", "--checkpoint", "nowhere.ckpt", "--debug")
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("fdistill: error: no checkpoint at nowhere.ckpt")


def test_usage_errors_and_other_errors_have_their_own_status():
    assert fdistill("sample").status == 2
    assert fdistill("sample", "--checkpoint", "nowhere.ckpt").status == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (UsageError("so not"), "so not"),
        (KeyError("name"), "KeyError: 'name' (run again with --debug for the traceback)"),
        (ValueError(), "ValueError:  (run again with --debug for the traceback)"),
        (
            NotADirectoryError(20, "Not a directory", "a/b"),
            "a/b: not a directory; name a file or folder that you may use",
        ),
    ],
)
def test_errors_become_one_line(error, line):
    assert one_line(error) == line


def test_interrupt_is_told(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fdistill.cli.main.run_verb", interrupted)
    assert fdistill("doctor") == (130, "", "fdistill: interrupted\n")


def test_a_reader_that_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fdistill", "presets"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")

"""The wheel, installed into a fresh environment and used in an empty folder, needs nothing of the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from repository import ROOT

SOURCES = ("fdistill", "configs", "checkpoints", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
DEPENDENCIES = [path for path in sys.path if Path(path).name == "site-packages"]


def succeeds(*command, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """The folder of the commands of an environment with the wheel, and the present one's packages behind it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    offline = ["--no-index", "--no-deps"]
    succeeds(*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, folder / "source", folder=folder)
    venv.create(folder / "env", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": folder / "env"}))
    (wheel,) = folder.glob("*.whl")
    succeeds(*pip, "--python", folder / "env", "install", *offline, wheel, folder=folder)
    (packages / "dependencies.pth").write_text("\n".join(DEPENDENCIES) + "\n")
    return folder / "env" / "bin"


USE = """
import contextlib, sys
import fdistill
from fdistill.cli.main import main

def succeeds(line):
    assert main(line.split()) == 0

print(fdistill.__file__)
succeeds("sample --checkpoint digits-student --n 4")
with contextlib.redirect_stderr(sys.stdout):  # where Lightning writes
    short = "--trainer.max_steps=2 --trainer.limit_val_batches=0 --data.batch_size=8"
    succeeds("fit --config trainer --config quickstart/teacher " + short)
    succeeds("dashboard runs/quickstart/train-teacher")
"""


def test_the_quick_start_begins_in_an_empty_folder_by_names(binaries, tmp_path):
    assert "quickstart/student" in succeeds(binaries / "fdistill", "presets", folder=tmp_path).stdout
    used = succeeds(binaries / "python", "-c", USE, folder=tmp_path)
    assert Path(used.stdout.splitlines()[0]).is_relative_to(binaries.parent)
    assert used.stderr == ""
    assert (tmp_path / "runs" / "quickstart" / "train-teacher" / "checkpoints" / "last.ckpt").is_file()
    assert "Losses" in (tmp_path / "runs" / "dashboard.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "samples.png"}

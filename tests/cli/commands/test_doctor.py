"""fdistill doctor: versions and state of this machine, and it never fails."""

import importlib.metadata

import pytest
from cli_runs import succeeds


def test_versions_are_those_of_the_installed_packages():
    out = succeeds("doctor")
    for package in ("fdistill", "torch", "lightning", "diffusers", "safetensors"):
        assert any(line.split() == [package, importlib.metadata.version(package)] for line in out.splitlines())


@pytest.mark.parametrize(
    ("mode", "words"), [("offline", "WANDB_MODE=offline"), (None, "not logged in: runs stay offline")]
)
def test_wandb_state_is_told_without_asking_anybody(mode, words, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if mode is None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
    else:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert words in succeeds("doctor")


def test_key_is_never_printed(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    out = succeeds("doctor")
    assert "logged in" in out
    assert "secret" not in out


def test_package_that_is_not_installed_is_no_error(monkeypatch):
    monkeypatch.setattr("fdistill.cli.commands.doctor._PACKAGES", ("torch", "torchvision", "no-such-package"))
    assert "no-such-package" in succeeds("doctor")

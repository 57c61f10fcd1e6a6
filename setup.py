"""Puts configs/ and checkpoints/ into the wheel, as fdistill/shipped; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPresets(build_py):
    """The package, and beside it what `fdistill.core.presets` finds by name; an editable install has the checkout's."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for name in ("configs", "checkpoints"):
            target = Path(self.build_lib, "fdistill", "shipped", name)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithPresets})

"""Tiny runs through the command line: a few turns on digits with a network of a few thousand weights."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from fdistill.cli.main import main

CONFIGS = Path(__file__).parents[1] / "configs"
TURNS = 6  # between two checkpoints


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def fdistill(*arguments):
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return Outcome(status, out.getvalue(), err.getvalue())


def succeeds(*arguments):
    """Run a command in this process that has to work; returns what it printed."""
    outcome = fdistill(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out


def fdistill_process(*arguments, **environment):
    """Run a command as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "fdistill", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=600,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def python_process(code, *arguments, **environment):
    """Run a script that has to work in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)


def write_yaml(path, **content):
    """A configuration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def tiny_trainer(folder):
    """The shared trainer, on the CPU, with a checkpoint every TURNS turns and a log line every turn."""
    trainer = {
        "accelerator": "cpu",
        "default_root_dir": str(folder),
        "max_steps": 2 * TURNS,
        "log_every_n_steps": 1,
        "limit_val_batches": 0,
        "val_check_interval": TURNS,
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "LastCheckpoint", "init_args": {"every_n_turns": TURNS}}],
    }
    return write_yaml(Path(f"{folder}-trainer.yaml"), trainer=trainer)


def teacher_arguments(folder, *more):
    """fdistill fit of a teacher; 10,829 weights."""
    config = CONFIGS / "quickstart" / "teacher.yaml"
    tiny = ["--model.network.init_args.widths=[8,16]", "--model.network.init_args.groups=4", "--data.batch_size=16"]
    return ["fit", *_composed(folder, config), *tiny, *more]


def student_arguments(folder, teacher, *more):
    """fdistill fit of a student: fused, Jensen-Shannon, adversarial, like the quickstart."""
    config = CONFIGS / "quickstart" / "student.yaml"
    return ["fit", *_composed(folder, config), f"--model.teacher={teacher}", "--data.batch_size=16", *more]


def _composed(folder, config):
    return ["--config", CONFIGS / "trainer.yaml", "--config", config, "--config", tiny_trainer(folder)]


def last(folder):
    """The newest checkpoint of a run."""
    return folder / "checkpoints" / "last.ckpt"


def weights_of(folder):
    """All saved weights of a run, and what its optimisers remember, as one flat dictionary of tensors."""
    checkpoint = torch.load(last(folder), weights_only=True)
    moments = {
        f"optimizer {i} {number} {name}": torch.as_tensor(value)
        for i, optimizer in enumerate(checkpoint["optimizer_states"])
        for number, state in optimizer["state"].items()
        for name, value in state.items()
    }
    return checkpoint["state_dict"] | moments


def one_error_line(outcome):
    """The one line that a failed command printed, without its prefix."""
    assert outcome.status not in (0, None)
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("fdistill: error: ")
    assert "Traceback" not in outcome.err + outcome.out
    assert len(lines[0]) < 600
    return lines[0].removeprefix("fdistill: error: ")

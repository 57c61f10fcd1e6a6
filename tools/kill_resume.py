"""Kill a run at random moments, continue it each time, and hold its end against the run that nobody killed.

    python tools/kill_resume.py --out runs/kill_resume
    python tools/kill_resume.py --adapters --out runs/kill_adapters

A distillation of the mixture (two MLPs, a discriminator with ratio bins, EMA, Adam, StudentDistance, BestCheckpoint)
saves after every few turns, so that about as much time goes into writing checkpoints as into turns; with --adapters,
of digits, where student and fake score are adapters on the teacher's weights. SIGKILL comes at a
uniform moment after training has begun; one that leaves a half-written file came inside writing. Compared are the
whole last checkpoints (weights, optimisers, averages, ratio bins, loops, position in the data, callbacks, random
states) and every line of metrics.jsonl, all but clocks and the names of folders. Writes results.json, and exits with
status 1 where anything differs.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fdistill.core.atomic_files import write_json
from fdistill.io.checkpoints import read_run_checkpoint

CLOCKS = ("train_seconds", "perf/step_ms", "perf/images_per_second")
FOLDERS = ("dirpath", "last_model_path", "best_model_path", "kth_best_model_path", "best_k_models")
CALLBACKS = [
    {"class_path": "StudentDistance", "init_args": {"every_n_turns": 25, "num_samples": 200}},
    {"class_path": "BestCheckpoint", "init_args": {"monitor": "metric/pixel_frechet_distance"}},
]


class Killed(NamedTuple):
    """One life of a run: seconds of training it got, the turn it had saved, and whether it was writing when it died."""

    seconds: float
    saved_turn: int
    inside_writing: bool


def command(folder: Path, turns: int, every_n_turns: int, width: int | None) -> list[str]:
    """fdistill fit, continuing where it can: of the mixture by MLPs of a width, or of digits by adapters."""
    last = {"class_path": "LastCheckpoint", "init_args": {"every_n_turns": every_n_turns}}
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.max_steps": turns,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": False,
        "trainer.callbacks": json.dumps([last, *CALLBACKS]),
        "model.fake_score_warmup": 10,
    }
    if width is None:
        roles = {"class_path": "SharedBase", "init_args": {"rank": 4, "targets": "all"}}
        settings |= {"model.teacher": "digits-teacher", "model.roles": json.dumps(roles), "data.batch_size": 8}
    else:
        settings |= {f"model.{side}.init_args.network.init_args.width": width for side in ("student", "fake_score")}
        settings["data.batch_size"] = 32
    config = "configs/quickstart/student.yaml" if width is None else "configs/quickstart/mixture.yaml"
    configs = ["--config", "configs/trainer.yaml", "--config", config]
    options = [f"--{name}={str(value).lower() if value is False else value}" for name, value in settings.items()]
    return [sys.executable, "-m", "fdistill", "fit", *configs, *options, "--ckpt_path", "last"]


def start(arguments: Sequence[str]) -> subprocess.Popen:
    """One thread, nothing printed but errors."""
    return subprocess.Popen(
        arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wait_for_training(process: subprocess.Popen, folder: Path) -> bool:
    """Wait until config.yaml is written, which happens when training begins; False where the process ended before."""
    config, began = folder / "config.yaml", time.time_ns()
    while process.poll() is None:
        if config.is_file() and config.stat().st_mtime_ns > began:
            return True
        time.sleep(0.01)
    return False


def kill_at_random(
    arguments: Sequence[str], folder: Path, longest: float, chance: random.Random, watch: Callable[[int], None]
) -> Killed | None:
    """Let the run live for up to `longest` seconds of training, then SIGKILL; None where it ended by itself.

    `watch` gets the id of the process about every tenth of a second.
    """
    seconds, process = chance.uniform(0.0, longest), start(arguments)
    if wait_for_training(process, folder):
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            watch(process.pid)
            time.sleep(min(0.1, max(end - time.monotonic(), 0.0)))
        process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1].decode()
    if process.returncode == -signal.SIGKILL:
        half_written = list((folder / "checkpoints").glob(".*.tmp"))
        return Killed(round(seconds, 3), saved_turn(folder), bool(half_written))
    if process.returncode:
        raise RuntimeError(f"the run failed by itself: {errors}")
    return None


def saved_turn(folder: Path) -> int:
    """Turns in the last checkpoint, which has to be whole; 0 where there is none yet."""
    last = folder / "checkpoints" / "last.ckpt"
    return read_run_checkpoint(last)["global_step"] if last.is_file() else 0


def differences(first: Any, second: Any, at: str = "") -> list[str]:
    """Where two checkpoints differ in a single bit, clocks and names of folders left out."""
    if isinstance(first, dict) and isinstance(second, dict):
        shared = [name for name in first if name in second and name not in CLOCKS + FOLDERS]
        alone = [f"{at}/{name}" for name in first.keys() ^ second.keys() if name not in CLOCKS + FOLDERS]
        return alone + [place for name in shared for place in differences(first[name], second[name], f"{at}/{name}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [place for i, (a, b) in pairs for place in differences(a, b, f"{at}/{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        return [] if same and torch.equal(_bits(first), _bits(second)) else [at]
    both_nan = isinstance(first, float) and isinstance(second, float) and math.isnan(first) and math.isnan(second)
    return [] if both_nan or (type(first) is type(second) and first == second) else [at]


def compare_runs(first: Path, second: Path, names: Sequence[str] = ("last.ckpt", "best.ckpt")) -> list[str]:
    """Where the checkpoints and the logs of two run folders differ."""
    found = []
    for name in names:
        pair = [read_run_checkpoint(folder / "checkpoints" / name) for folder in (first, second)]
        found += differences(*pair, name)
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (first, second)]
    return found + differences(*logs, "metrics.jsonl")


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().flatten().view(torch.uint8) if value.numel() else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--every", type=int, default=2, help="turns between two checkpoints")
    parser.add_argument("--width", type=int, default=128, help="of the MLPs")
    parser.add_argument("--adapters", action="store_true", help="on the digits teacher, in place of MLPs")
    parser.add_argument("--longest", type=float, default=2.0, help="seconds of training before a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    whole, killed = options.out / "whole", options.out / "killed"
    width = None if options.adapters else options.width
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(command(whole, options.turns, options.every, width), check=True)
    arguments = command(killed, options.turns, options.every, width)
    chance, lives = random.Random(options.seed), []
    while len(lives) < options.kills:
        life = kill_at_random(arguments, killed, options.longest, chance, lambda pid: None)
        if life is None:
            raise SystemExit(f"the run ended after {len(lives)} kills: give more --turns or a smaller --longest")
        lives.append(life)
        print(life, flush=True)
    subprocess.run(arguments, check=True)
    differ = compare_runs(whole, killed)
    left = [path.name for path in (killed / "checkpoints").iterdir() if path.name not in ("last.ckpt", "best.ckpt")]
    kills = [life._asdict() for life in lives]
    write_json(options.out / "results.json", {"turns": options.turns, "kills": kills, "differ": differ, "left": left})
    inside = sum(life.inside_writing for life in lives)
    print(f"{len(lives)} kills, {inside} inside writing a checkpoint; {len(differ)} values differ; left over: {left}")
    return int(bool(differ or left))


if __name__ == "__main__":
    sys.exit(main())

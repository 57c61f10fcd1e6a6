"""Time and memory of precision, recall, density and coverage together: fdistill beside the package prdc.

    pip install prdc scikit-learn && python tools/benchmark_neighbours.py

Each measurement has a process of its own, on as many cores as it may use threads; the two take turns. Prints Markdown:
medians, and the peak of memory in all and above what the process held with its imports and samples. prdc is not a
dependency: where it cannot be imported, its row is left out.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 5
MIB = 2**20


def numbers_of_prdc(generated: np.ndarray, real: np.ndarray) -> Callable[[], dict[str, float]]:
    from prdc import compute_prdc

    return lambda: {name: float(value) for name, value in compute_prdc(real, generated, nearest_k=K).items()}


def numbers_of_fdistill(generated: np.ndarray, real: np.ndarray) -> Callable[[], dict[str, float]]:
    import torch

    from fdistill.evaluation.metrics import neighbour_statistics

    samples = torch.from_numpy(generated), torch.from_numpy(real)

    def numbers() -> dict[str, float]:
        in_reference, in_generated, balls, covered = neighbour_statistics(*samples, manifold_k=K, density_k=K)
        means = (values.double().mean() for values in (in_reference, in_generated, balls / K, covered))
        return dict(zip(("precision", "recall", "density", "coverage"), map(float, means), strict=True))

    return numbers


def training_metrics(generated: np.ndarray, real: np.ndarray) -> Callable[[], dict[str, float]]:
    import torch

    from fdistill.evaluation.metrics import neighbour_statistics, tail_indices

    samples = torch.from_numpy(generated).float(), torch.from_numpy(real).float()

    def numbers() -> dict[str, float]:
        neighbour_statistics(*samples)
        return {name: float(value) for name, value in tail_indices(*samples)._asdict().items()}

    return numbers


SUBJECTS = {"prdc": numbers_of_prdc, "fdistill": numbers_of_fdistill, "training metrics": training_metrics}


def resident() -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def measure(subject: str, n: int, d: int, calls: int) -> dict[str, Any]:
    """Seconds of each call, the first one apart, and MiB, in this process."""
    draw = np.random.default_rng(0)
    real, generated = draw.standard_normal((n, d)), draw.standard_normal((n, d))
    compute = SUBJECTS[subject](generated, real)
    before, seconds = resident(), []
    for _ in range(1 + calls):
        started = time.perf_counter()
        numbers = compute()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds[1:], "peak": peak, "above": peak - before, "numbers": numbers}


def in_new_process(subject: str, n: int, d: int, calls: int, threads: int) -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    arguments = ["--subject", subject, "--n", str(n), "--d", str(d), "--calls", str(calls), "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **dict.fromkeys(names, str(threads))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])  # prdc prints lines of its own before


def row(name: str, runs: list[dict[str, Any]]) -> str:
    seconds = [value for run in runs for value in run["seconds"]]
    peak, above = (statistics.median(run[key] for run in runs) for key in ("peak", "above"))
    numbers = ", ".join(f"{value:.4f}" for value in runs[0]["numbers"].values())
    spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
    return f"| {name} | {statistics.median(seconds):.3f} ({spread}) | {peak:.0f} | {above:.0f} | {numbers} |"


def report(n: int, d: int, calls: int, rounds: int, threads: int) -> None:
    subjects = ["fdistill"]
    if importlib.util.find_spec("prdc"):
        subjects.insert(0, "prdc")
    else:
        print("prdc is not installed: pip install prdc scikit-learn\n")
    runs: dict[str, list[dict[str, Any]]] = {subject: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            runs[subject].append(in_new_process(subject, n, d, calls, threads))
    header = "seconds, median (range) | peak MiB | MiB above imports and samples | "
    print(f"n = m = {n}, d = {d}, k = {K}, float64, {threads} threads, {rounds} processes of {calls} calls\n")
    print(f"| | {header}precision, recall, density, coverage |\n|---|---|---|---|---|")
    print("\n".join(row(subject, runs[subject]) for subject in subjects))
    if len(subjects) == 2:
        middle = {name: statistics.median(s for run in runs[name] for s in run["seconds"]) for name in subjects}
        above = {name: statistics.median(run["above"] for run in runs[name]) for name in subjects}
        faster, smaller = (values["prdc"] / values["fdistill"] for values in (middle, above))
        print(f"\n{faster:.1f} times as fast, {smaller:.0f} times less memory above imports and samples")
    training = [in_new_process("training metrics", 2000, 32, 20, threads)]
    print("\nOne evaluation while training, n = m = 2000, d = 32, float32: the same four and the tail indices\n")
    print(f"| | {header}tid, anchored_tid, count_ratio, neighbour_distance_ratio, eps |\n|---|---|---|---|---|")
    print(row("fdistill", training))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="samples on each side")
    parser.add_argument("--d", type=int, default=64, help="features of a sample")
    parser.add_argument("--calls", type=int, default=3, help="measured calls of a process, after one to warm up")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n, d, calls = arguments.n, arguments.d, arguments.calls
    if arguments.subject is None:
        report(n, d, calls, arguments.rounds, arguments.threads)
        return
    # prdc asks scikit-learn for eight threads whatever the environment says: cores bind both alike
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    print(json.dumps(measure(arguments.subject, n, d, calls)))


if __name__ == "__main__":
    main()

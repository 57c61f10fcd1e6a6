"""The Vendi score here beside the package vendi-score, in one run: medians of times, and the memory of a stream.

    pip install --no-deps vendi-score==0.0.3
    python tools/benchmark_vendi.py --threads 1

1. n = 5,000, d = 64: `vendi_score` beside `score_X`, which takes the eigenvalues of n x n.
2. n = 20,000, d = 2,048: the streaming `VendiScore`, in batches, beside `score_dual` of all samples at once, which
   takes those of d x d. The package computes in the precision of its input, ours in float64: float64 is the fair one.
3. n = 50,000, d = 2,048: peak memory of a stream of batches and of one batch of all, beyond that of the input.
"""

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.vendi_score import VendiScore, vendi_score

BATCH = 1000


def normal(n: int, d: int, step: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, dtype=dtype, generator=generator_for(0, step))


def medians(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns, so that whatever else the machine does falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def streamed(features: Tensor) -> Tensor:
    metric = VendiScore()
    for batch in features.split(BATCH):
        metric.update(batch, real=False)
    return metric.compute()


def small(repeats: int) -> None:
    from vendi_score import vendi

    features = normal(5_000, 64)
    ours = medians({"ours": lambda: vendi_score(features)}, 20 * repeats)["ours"]
    values = []
    theirs = medians({"theirs": lambda: values.append(vendi.score_X(features.numpy()))}, 1)["theirs"]
    times = f"vendi_score {1000 * ours:.2f} ms, score_X {theirs:.1f} s (once)"
    print(f"1. n=5,000 d=64: {times}: {theirs / ours:.0f} times as fast")
    print(f"   values {float(vendi_score(features)):.9f} and {values[0]:.9f}")


def large(repeats: int) -> None:
    from vendi_score import vendi

    double = normal(20_000, 2_048)
    single = double.float()
    found = medians(
        {
            "stream of float64": lambda: streamed(double),
            "score_dual of float64": lambda: vendi.score_dual(double.numpy()),
            "stream of float32": lambda: streamed(single),
            "score_dual of float32": lambda: vendi.score_dual(single.numpy()),
        },
        repeats,
    )
    print("2. n=20,000 d=2,048: " + ", ".join(f"{name} {value:.2f} s" for name, value in found.items()))
    for kind in ("float64", "float32"):
        ratio = found[f"stream of {kind}"] / found[f"score_dual of {kind}"]
        print(f"   {kind} in: {ratio:.2f} times the time of score_dual, which computes in {kind}; ours in float64")
    print(f"   values {float(streamed(double)):.6f} and {vendi.score_dual(double.numpy()):.6f}")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(batch: int) -> None:
    """Print the MiB that a stream of 50,000 samples in such batches adds to the peak of making one batch."""
    normal(batch, 2_048, dtype=torch.float32)
    before, metric = peak(), VendiScore()
    for step in range(50_000 // batch):
        metric.update(normal(batch, 2_048, step, torch.float32), real=False)
    metric.compute()
    print(peak() - before)


def memory(threads: int) -> None:
    for batch in (BATCH, 50_000):
        command = [sys.executable, __file__, "--threads", str(threads), "--memory-of-batches", str(batch)]
        extra = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"3. n=50,000 d=2,048 float32 in batches of {batch:,}: {extra:.0f} MiB beyond the input", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of-batches", type=int, help="what the tool runs itself with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        if options.memory_of_batches:
            measured(options.memory_of_batches)
            return
        print(f"threads: {options.threads}, torch {torch.__version__}", flush=True)
        memory(options.threads)
        if importlib.util.find_spec("vendi_score") is None:
            print("for 1. and 2.: pip install --no-deps vendi-score==0.0.3")
            return
        large(options.repeats)
        small(options.repeats)


if __name__ == "__main__":
    main()

"""What the order of a network's weights and the size of a batch do to sampling on the CPU.

    python tools/benchmark_sampling.py --resolution 28 --channels 1 --threads 1

Milliseconds an image of one evaluation of a SmallUNet (median of --repeats, interleaved): weights as they are made,
and channels last; each at several batch sizes, as numbers that a batch holds. The network is not trained, which
changes no time. `GenerativeModel.sampling_on` and its batch size are what this says is fastest at 28x28.
"""

import argparse
import copy
import statistics
import time

import torch

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

VALUES = (12_544, 50_176, 100_352, 392_000)  # of 1x28x28: batches of 16, 64, 128 and 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = SmallUNet(options.resolution, options.channels, options.widths, num_classes=10)
    plain = GenerativeModel.student(Denoiser(network, EDM(0.5)), 2.0)
    models = {"as made": plain, "channels last": copy.deepcopy(plain).sampling_on("cpu")}
    size = options.channels * options.resolution**2
    batches = sorted({max(1, values // size) for values in VALUES})
    times: dict[tuple[str, int], list[float]] = {(order, batch): [] for order in models for batch in batches}
    for repeat in range(options.repeats + 1):
        for (order, batch), found in times.items():
            noise, labels = models[order].noise(batch, repeat), models[order].labels(batch)
            started = time.perf_counter()
            models[order].sample(noise, labels, batch)
            if repeat:  # the first warms up
                found.append(1000 * (time.perf_counter() - started) / batch)
    print(f"{options.channels}x{options.resolution}x{options.resolution}, widths {options.widths}, ms an image")
    print("| batch | as made | channels last | ratio |\n|---|---|---|---|")
    for batch in batches:
        made, last = (statistics.median(times[order, batch]) for order in models)
        print(f"| {batch} | {made:.2f} | {last:.2f} | {made / last:.2f} |")


if __name__ == "__main__":
    main()

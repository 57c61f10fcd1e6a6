"""Batches a second of the training stream, with and without worker processes: how much of a turn it may cost.

    python tools/benchmark_loader.py --batches 200
    python tools/benchmark_loader.py --data data.yaml --workers 0 2

Prints, for each data set, milliseconds a batch (the median of five stretches) and images a second. Data lies in memory
and a batch is one indexed copy, so worker processes only add their queues.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from fdistill.commands.yaml_section import data_of_file
from fdistill.data import Digits, GenerativeDataModule, InMemorySplit, StackedDigits
from fdistill.report import write_json

STRETCHES = 5


class Pictures(GenerativeDataModule):
    """As many bytes as a folder of colour pictures gives, of noise."""

    def __init__(self, resolution: int, count: int, batch_size: int, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers=num_workers)
        self.resolution, self.count = resolution, count

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return 3, self.resolution, self.resolution

    @property
    def num_classes(self) -> int:
        return 0

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        x = torch.rand(self.count, *self.sample_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        split = InMemorySplit(x, torch.zeros(len(x), dtype=torch.int64))
        return split, split


def milliseconds(data: GenerativeDataModule, batches: int) -> float:
    """A batch, once the first one is there."""
    stream = iter(data.train_dataloader())
    next(stream)
    found = []
    for _ in range(STRETCHES):
        started = time.perf_counter()
        for _ in range(batches):
            next(stream)
        found.append(1000 * (time.perf_counter() - started) / batches)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="YAML file with a data section, in place of the three of the table")
    parser.add_argument("--batches", type=int, default=200, help="of each of five stretches")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = parser.parse_args()
    if options.data is None:
        sets = [Digits(batch_size=options.batch), StackedDigits(batch_size=options.batch)]
        sets += [Pictures(32, 10_000, options.batch), Pictures(64, 4_000, options.batch)]
    else:
        sets = [data_of_file(str(options.data))]
    found = []
    print("| data | sample | workers | ms a batch | images a second |\n|---|---|---|---|---|")
    for data in sets:
        for workers in options.workers:
            data.num_workers = workers
            ms = milliseconds(data, options.batches)
            shape = " x ".join(map(str, data.sample_shape))
            name, speed = type(data).__name__, 1000 * data.batch_size / ms
            print(f"| {name} | {shape} | {workers} | {ms:.2f} | {speed:,.0f} |", flush=True)
            found.append({"data": name, "sample": shape, "workers": workers, "ms": ms, "images_per_second": speed})
    if options.out is not None:
        write_json(options.out / "results.json", found)


if __name__ == "__main__":
    main()

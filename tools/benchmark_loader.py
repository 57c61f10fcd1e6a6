"""Images a second of the training stream, beside what a network eats: whether a trainer waits for its data.

    python tools/benchmark_loader.py --batches 200 --needs 6000
    python tools/benchmark_loader.py --data data.yaml --workers 0 2

Prints, for each data set, milliseconds a batch (the median of five stretches), images a second, and their share of what
`--needs` says that the network takes in a second. Data in memory is one indexed copy a batch, so worker processes only
add their queues; JPEG files (512 of 256 x 256, decoded to 64 x 64) and latents (4 x 32 x 32, drawn from their
posteriors) are read from a temporary folder whose pages the system has in memory.
"""

import argparse
import json
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from fdistill.cli.commands.yaml_section import data_of_file
from fdistill.core.atomic_files import write_json
from fdistill.data import Digits, GenerativeDataModule, ImageFolder, InMemorySplit, LatentFolder, StackedDigits
from fdistill.data.latent_files import DESCRIPTION, LatentDescription

STRETCHES = 5
LONGEST = 3.0  # seconds of a stretch, once it has two batches
JPEGS, SIDE, LATENTS = 512, 256, 4096
Row = dict[str, str | int | float]


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


def write_jpegs(folder: Path) -> None:
    """Files of a photograph's size (about 20 kB): coarse noise, enlarged, with a little fine noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(JPEGS):
        coarse = Image.fromarray(random.integers(0, 256, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (smooth + random.integers(-10, 11, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.jpg", quality=90)


def write_tars(images: Path, folder: Path) -> None:
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for file in sorted(images.iterdir())[shard::4]:
                archive.add(file, file.name)


def write_latents(folder: Path) -> None:
    """What fdistill encode writes, of noise and without a VAE."""
    folder.mkdir()
    tensors = {name: torch.rand(LATENTS, 4, 32, 32, generator=torch.Generator().manual_seed(0)) for name in ("mean",)}
    tensors |= {"std": tensors["mean"].flip(0).contiguous(), "labels": torch.zeros(LATENTS, dtype=torch.int64)}
    file = folder / "latents-00000.safetensors"
    file.write_bytes(save(tensors, {"request": "noise"}))
    files = [{"name": file.name, "images": LATENTS, "bytes": file.stat().st_size}]
    described = LatentDescription([4, 32, 32], True, False, [], files, {}, "noise")
    (folder / DESCRIPTION).write_text(json.dumps(described._asdict()))


def milliseconds(data: GenerativeDataModule, batches: int) -> float:
    """A batch, once the first one is there."""
    stream = iter(data.train_dataloader())
    next(stream)
    found = []
    for _ in range(STRETCHES):
        started, done = time.perf_counter(), 0
        while done < batches and (done < 2 or time.perf_counter() - started < LONGEST):
            next(stream)
            done += 1
        found.append(1000 * (time.perf_counter() - started) / done)
    return statistics.median(found)


def table(sets: dict[str, GenerativeDataModule], workers: list[int], batches: int, needs: float | None) -> list[Row]:
    """Print one row for each data set and number of workers, and return their numbers."""
    titles = ["data", "sample", "workers", "ms a batch", "images a second"]
    titles += [] if needs is None else [f"of {needs:,.0f}"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    found = []
    for name, data in sets.items():
        for number in workers:
            data.num_workers = number
            ms = milliseconds(data, batches)
            speed = 1000 * data.batch_size / ms
            shape = " x ".join(map(str, data.sample_shape))
            row = [name, shape, str(number), f"{ms:.2f}", f"{speed:,.0f}"]
            row += [] if needs is None else [f"{speed / needs:.2f}"]
            print(f"| {' | '.join(row)} |", flush=True)
            found.append({"data": name, "sample": shape, "workers": number, "ms": ms, "images_per_second": speed})
    return found


def measured(options: argparse.Namespace) -> list[Row]:
    """The table of one data set or of all."""
    given = (options.workers, options.batches, options.needs)
    if options.data is not None:
        return table({options.data.name: data_of_file(str(options.data))}, *given)
    with tempfile.TemporaryDirectory() as name:
        folder, batch = Path(name), {"batch_size": options.batch}
        write_jpegs(folder / "jpegs")
        write_tars(folder / "jpegs", folder / "tars")
        write_latents(folder / "latents")
        sets = {
            "digits": Digits(**batch),
            "stacked digits": StackedDigits(**batch),
            "colour pictures": Pictures(32, 10_000, **batch),
            "colour pictures, larger": Pictures(64, 4_000, **batch),
            "JPEG files": ImageFolder(str(folder / "jpegs"), 64, in_memory=False, **batch),
            "JPEG in .tar files": ImageFolder(str(folder / "tars"), 64, in_memory=False, **batch),
            "JPEG files, in memory": ImageFolder(str(folder / "jpegs"), 64, **batch),
            "latents, drawn anew": LatentFolder(str(folder / "latents"), **batch),
            "latents, means": LatentFolder(str(folder / "latents"), sample=False, **batch),
        }
        return table(sets, *given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="YAML file with a data section, in place of those of the table")
    parser.add_argument("--batches", type=int, default=200, help="of each of five stretches, at most")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--needs", type=float, help="images that the network takes in a second")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(options)
    if options.out is not None:
        write_json(options.out / "results.json", found)


if __name__ == "__main__":
    main()

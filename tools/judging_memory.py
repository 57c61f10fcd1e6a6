"""Peak memory of a run that is judged while it trains, and of its evaluation, beside the size of the 8-bit data.

    python tools/judging_memory.py --images 60000 --resolution 64

Trains a tiny student for two turns on random images, with SampleGrid, StudentDistance and DiversityCallback at each,
then evaluates it, and prints one line of JSON: megabytes of the data, of the peak above what the process held before
there was any data, their ratio, and seconds of CPU.
"""

import argparse
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch

from fdistill.data import GenerativeDataModule, InMemorySplit
from fdistill.evaluation.evaluate import evaluate_models
from fdistill.evaluation.features import PixelFeatures
from fdistill.evaluation.metrics import FrechetDistance, MemorizedFraction
from fdistill.evaluation.sources import ModelSource
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.objectives import FDistill
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM
from fdistill.training import DistillationModule
from fdistill.training.callbacks import DiversityCallback, SampleGrid, StudentDistance


class RandomImages(GenerativeDataModule):
    """Noise in ten classes, as 8-bit pixels; the held-out split is a twentieth as large."""

    def __init__(self, images: int = 60_000, resolution: int = 64, batch_size: int = 8) -> None:
        super().__init__(batch_size)
        self.images, self.resolution = images, resolution

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (3, self.resolution, self.resolution)

    @property
    def num_classes(self) -> int:
        return 10

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        return self._split(self.images), self._split(max(100, self.images // 20))

    def _split(self, n: int) -> InMemorySplit:
        x = torch.empty(n, *self.sample_shape, dtype=torch.uint8)
        x.random_(0, 256, generator=torch.Generator().manual_seed(n))
        return InMemorySplit(x, torch.arange(n) % 10)


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judge(data: GenerativeDataModule, n: int, folder: Path) -> None:
    """Two turns with every callback that reads real data, then an evaluation, of n samples each."""
    network = SmallUNet(data.sample_shape[1], 3, (4, 4, 4, 4), num_classes=10)
    module = DistillationModule(
        Denoiser(network, EDM(0.5)),
        FDistill(JensenShannon(), 0.0, "sigma"),
        LogNormal(-0.5, 1.0),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
        sigma_init=2.0,
        turn="fused",
    )
    metrics = {"frechet_distance": FrechetDistance(), "memorized_fraction": MemorizedFraction()}
    callbacks = [
        SampleGrid(1, num_samples=4),
        StudentDistance(1, num_samples=n),
        DiversityCallback(1, n, PixelFeatures(max_values=192), metrics, teacher=False),
    ]
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, max_epochs=-1, logger=False, callbacks=callbacks, default_root_dir=folder,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    student = ModelSource(module.generative_model())
    evaluate_models(student, None, data, min(n, 100), 0, 1, 0, PixelFeatures(max_values=192))


def main() -> None:
    """See the first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--samples", type=int, default=500)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        judge(RandomImages(100, options.resolution), 20, Path(folder))  # what libraries load on first use
        before, started = peak(), time.process_time()
        data = RandomImages(options.images, options.resolution)
        judge(data, options.samples, Path(folder))
    size = data.images * 3 * data.resolution**2 / 2**20
    found = {"data": round(size), "peak": round(peak() - before), "ratio": round((peak() - before) / size, 2)}
    print(json.dumps(found | {"cpu_seconds": round(time.process_time() - started)}))


if __name__ == "__main__":
    main()

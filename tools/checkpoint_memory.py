"""Peak host memory of saving and resuming a sharded run on two ranks, above what the run itself holds.

python tools/checkpoint_memory.py [--width 1024] [--depth 12]
"""

import argparse
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

import lightning.pytorch as L
import torch

from fdistill.data import GaussianMixtureData
from fdistill.models.networks import MLP
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM
from fdistill.training import TeacherModule


def megabytes(field: str) -> float:
    """VmRSS (now) or VmHWM (at the most) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


class Peak:
    """Memory at the most inside, above that at the beginning."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.before = megabytes("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.above = megabytes("VmHWM") - self.before


class Watched(TeacherModule):
    """Measures from before its checkpoint is read until its first turn."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.peak = Peak().__enter__()

    def on_train_start(self) -> None:
        super().on_train_start()
        self.peak.__exit__()


def fit(width: int, depth: int, turns: int, resume_from: Path | None = None) -> tuple[L.Trainer, "Watched"]:
    module = Watched(
        MLP(width=width, depth=depth),
        preconditioning=EDM(1.0),
        noise_levels=LogNormal(-0.5, 1.0),
        optimizer=torch.optim.Adam,
        sigma_data=1.0,
    )
    run = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="sharded",
        max_steps=turns,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    data = GaussianMixtureData(num_modes=2, num_samples=512, num_held_out=64, batch_size=8)
    run.fit(module, datamodule=data, ckpt_path=resume_from)
    return run, module


def work(rank: int, port: int, folder: Path, width: int, depth: int, told: multiprocessing.Queue) -> None:
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    names |= {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "memory"}
    os.environ.update({name: str(value) for name, value in names.items()})
    path = folder / "last.ckpt"
    run, module = fit(width, depth, 1)
    with Peak() as saving:
        run.save_checkpoint(path)
    parameters = sum(p.numel() for p in module.denoiser.parameters())
    del run, module
    _, resumed = fit(width, depth, 2, path)
    told.put((rank, parameters, saving.above, resumed.peak.above))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=12)
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        more = (port, Path(folder), given.width, given.depth, told)
        ranks = [context.Process(target=work, args=(rank, *more)) for rank in range(2)]
        for process in ranks:
            process.start()
        for rank, parameters, saving, resuming in sorted(told.get() for _ in ranks):
            print(
                f"rank {rank}, {parameters / 1e6:.1f}M parameters (weights, average and two moments of them: "
                f"{16 * parameters / 2**20:.0f} MiB): saving {saving:.0f} MiB, resuming {resuming:.0f} MiB"
            )
        for process in ranks:
            process.join()


if __name__ == "__main__":
    main()

"""Distributions of the log ratio and of the weight h(r) at every noise level, over the last student updates."""

from collections import deque
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fdistill.core.distributed import on_rank_0
from fdistill.evaluation.report.diagnostic_figures import ratio_figure
from fdistill.evaluation.see_saw import ratio_by_bin
from fdistill.objectives.log_ratio import RatioEstimator
from fdistill.training import DistillationModule
from fdistill.training.loggers import log_histogram, log_numbers, log_picture
from fdistill.training.run_parts import generative


class RatioHistograms(L.Callback):
    """Logs ratio_bin/log_mean/<bin>, weight_bin/mean/<bin>, weight_bin/ess/<bin> and histograms, and draws them.

    The bins are the ratio estimator's; bin 0 has the lowest noise. Healthy is a log ratio centred near 0 in every bin,
    and wide only at low noise, where student and teacher still differ; high noise makes them alike. The picture is
    diagnosis/ratio_<turn>.png. All of it is of rank 0's samples: a share of the batch drawn like the others.
    """

    def __init__(self, every_n_updates: int = 200, window: int = 50) -> None:
        """Args:
        every_n_updates: student updates between two looks.
        window: last student updates whose samples are looked at together.
        """
        if every_n_updates < 1 or window < 1:
            raise ValueError(f"RatioHistograms needs positive numbers: got {every_n_updates} and {window}")
        self.every_n_updates = every_n_updates
        self._seen: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=window)
        self._updates = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out whether there is a ratio.

        Raises:
            ValueError: while a teacher trains.
        """
        module = generative(pl_module)
        if not isinstance(module, DistillationModule):
            raise ValueError(
                f"RatioHistograms looks at a distillation: expected DistillationModule, got "
                f"{type(module).__name__}; remove it from callbacks"
            )
        if not module.objective.needs.ratio:
            rank_zero_info(f"{type(module.objective).__name__} needs no ratio: RatioHistograms has nothing to show")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with an empty window."""
        module = cast(DistillationModule, pl_module)
        self._seen.clear()
        self._updates = module.updates

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Keep what a student update saw, and look on schedule."""
        module = cast(DistillationModule, pl_module)
        if module.last_ratio is None or module.updates == self._updates:
            return
        self._updates = module.updates
        self._seen.append(module.last_ratio)
        if self._updates % self.every_n_updates:
            return
        # log_dir is broadcast from rank 0, so every rank has to ask for it
        path = Path(trainer.log_dir or trainer.default_root_dir) / "diagnosis" / f"ratio_{trainer.global_step:07d}.png"
        on_rank_0(lambda: self._look(trainer, module, path))

    @torch.no_grad()
    def _look(self, trainer: L.Trainer, pl_module: DistillationModule, path: Path) -> None:
        sigma, log_ratio, weight = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        ratio = cast(RatioEstimator, pl_module.ratio)  # one has been seen
        num_bins, turn = len(ratio.count), trainer.global_step
        bins = ratio.bin_of(sigma).cpu()
        log_ratio, weight = log_ratio.cpu(), weight.cpu()
        found = ratio_by_bin(bins, log_ratio, weight, num_bins)
        columns = {
            "ratio_bin/log_mean": found.log_mean,
            "weight_bin/mean": found.weight_mean,
            "weight_bin/ess": found.ess,
        }
        filled = bins.unique().tolist()
        numbers = {f"{name}/{i}": float(column[i]) for name, column in columns.items() for i in filled}
        log_numbers(trainer.loggers, numbers, turn)
        log_histogram(trainer.loggers, "ratio/histogram", log_ratio, turn)
        log_histogram(trainer.loggers, "weight/histogram", weight, turn)
        middles = pl_module.noise_levels.quantile((torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins)
        ratio_figure(
            [log_ratio[bins == i] for i in range(num_bins)],
            [weight[bins == i] for i in range(num_bins)],
            middles.tolist(),
            found.ess.tolist(),
            f"Density ratio after {self._updates:,} student updates (last {len(self._seen)} of them)",
            path,
        )
        log_picture(trainer.loggers, "diagnosis/ratio", path, turn)

"""How far the generator's map is from an optimal one, while it trains: a description, no score."""

from typing import Any

import lightning.pytorch as L
import torch

from fdistill.evaluation.metrics import monge_gap
from fdistill.training.callbacks.measured import check_no_prompts, publish
from fdistill.training.run_parts import generative


class MongeGap(L.Callback):
    """Logs metric/monge_gap: of the EMA generator between standard normal latents and samples, per entry.

    Classes take turns, and each has a map of its own. The gap of a collapsed student is 0, and so is that of most maps
    in many dimensions (`fdistill.evaluation.metrics.monge_gap`): read it on small data, beside metrics of quality.
    Every rank computes the same number from the same latents, so that no rank has to wait.
    """

    def __init__(self, every_n_updates: int = 200, num_samples: int = 500, seed: int = 0) -> None:
        """Args:
        every_n_updates: student updates (teacher training: turns) between two measurements.
        num_samples: all classes together, at least 2; the time grows with its third power.
        seed: of the latents.
        """
        if every_n_updates < 1 or num_samples < 2:
            raise ValueError(
                f"MongeGap needs every_n_updates >= 1 and num_samples >= 2: got {every_n_updates}, {num_samples}"
            )
        self.every_n_updates, self.num_samples, self.seed = every_n_updates, num_samples, seed
        self._last = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises ValueError where a sample is made of several latents, or the generator takes prompts."""
        module = generative(pl_module)
        check_no_prompts(self, module)
        steps = len(getattr(module, "levels", (0,)))
        if steps > 1:
            raise ValueError(f"MongeGap is about the map of a one-step student: got {steps} steps; leave it out")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Measure on schedule."""
        module = generative(pl_module)
        updates = module.updates
        if updates == self._last or updates % self.every_n_updates:
            return
        self._last = updates
        model = module.generative_model()
        z, labels = model.noise(self.num_samples, self.seed), model.labels(self.num_samples)
        with torch.no_grad():
            gap = monge_gap(z, model.sample(z, labels), labels=labels)
        publish(trainer, module, {"metric/monge_gap": gap / z[0].numel()})

    def state_dict(self) -> dict[str, Any]:
        """When it last measured."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self._last = state_dict["last"]

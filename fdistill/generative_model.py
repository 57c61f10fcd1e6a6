"""A denoiser with the way to sample from it: what checkpoints and exported folders hold."""

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fdistill.denoiser import Denoiser
from fdistill.noise_levels import karras_grid
from fdistill.samplers import generate, heun, one_step


@dataclass
class GenerativeModel:
    """A student (one evaluation at its sigma_init) or a teacher (Heun on a Karras grid).

    Attributes:
        denoiser: in evaluation mode; its device is where samples are made.
        kind: "student" or "teacher".
        sigmas: noise levels visited; one for a student.
        guidance: classifier-free guidance scale while sampling; 1 for none.
        facts: plain values that a model card tells (divergence, seed, step, teacher, data ...).
    """

    denoiser: Denoiser
    kind: Literal["student", "teacher"]
    sigmas: Tensor
    guidance: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def student(cls, denoiser: Denoiser, sigma_init: float, facts: dict[str, Any] | None = None) -> "GenerativeModel":
        """A one-step generator G(z) = D(sigma_init z, sigma_init)."""
        return cls(denoiser.eval(), "student", torch.tensor([sigma_init], dtype=torch.float64), facts=facts or {})

    @classmethod
    def teacher(
        cls,
        denoiser: Denoiser,
        num_steps: int,
        sigma_min: float,
        sigma_max: float,
        guidance: float = 1.0,
        facts: dict[str, Any] | None = None,
    ) -> "GenerativeModel":
        """A teacher sampled with Heun: 2 num_steps - 1 evaluations, twice that with guidance."""
        sigmas = karras_grid(num_steps, sigma_min, sigma_max)
        return cls(denoiser.eval(), "teacher", sigmas, guidance, facts or {})

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.denoiser.sample_shape

    @property
    def num_classes(self) -> int:
        """0 where unconditional."""
        return self.denoiser.num_classes

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample."""
        steps = 1 if self.kind == "student" else 2 * (len(self.sigmas) - 1) - 1
        return steps * (2 if self.guidance != 1 and self.num_classes else 1)

    @property
    def device(self) -> torch.device:
        """Where samples are made; an analytic denoiser has buffers only, and no state."""
        tensors = itertools.chain(self.denoiser.parameters(), self.denoiser.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def to(self, device: torch.device | str) -> "GenerativeModel":
        """Move the denoiser, in place."""
        self.denoiser.to(device)
        return self

    def noise(self, n: int, seed: int) -> Tensor:
        """The n latents of a seed, standard normal [n, *sample_shape]; the numbers that stock diffusers draws."""
        return torch.randn(n, *self.sample_shape, generator=torch.Generator().manual_seed(seed))

    def labels(self, n: int) -> Tensor | None:
        """The default conditions: classes in turn, int64 [n]; None for an unconditional model."""
        return torch.arange(n) % self.num_classes if self.num_classes else None

    def sample(self, noise: Tensor, labels: Tensor | None = None, batch_size: int = 500) -> Tensor:
        """Samples on the CPU, [B, *sample_shape] float32, from standard normal noise and labels in [0, num_classes).

        Raises:
            ValueError: if a conditional model gets no labels or a label out of range.
        """
        labels = check_labels(labels, self.num_classes).to(self.device) if self.num_classes else None
        sampler = one_step if self.kind == "student" else heun
        return generate(
            sampler, self.denoiser, noise.to(self.device), self.sigmas, labels, self.guidance, batch_size
        ).cpu()


def check_labels(labels: Tensor | None, num_classes: int) -> Tensor:
    """labels, or ValueError where they are missing or outside [0, num_classes)."""
    if labels is None:
        raise ValueError(f"a class-conditional model needs one label per sample in [0, {num_classes}): got none")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"a class label lies in [0, {num_classes}): got {int(outside[0])}")
    return labels

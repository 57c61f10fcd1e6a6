"""A denoiser with the way to sample from it: what checkpoints and exported folders hold."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fdistill.denoiser import Denoiser
from fdistill.noise_levels import karras_grid
from fdistill.samplers import generate, heun, multi_step, one_step


@dataclass
class GenerativeModel:
    """A student (one evaluation at each of its K noise levels) or a teacher (Heun on a Karras grid).

    Attributes:
        denoiser: in evaluation mode; its device is where samples are made.
        kind: "student" or "teacher".
        sigmas: noise levels visited, falling; all > 0 for a student, the last 0 for a teacher.
        guidance: classifier-free guidance scale while sampling; 1 for none.
        facts: plain values that a model card tells (divergence, seed, step, teacher, data ...).
    """

    denoiser: Denoiser
    kind: Literal["student", "teacher"]
    sigmas: Tensor
    guidance: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "student":
            _check_levels(self.sigmas)

    @classmethod
    def student(
        cls, denoiser: Denoiser, sigmas: float | Sequence[float], facts: dict[str, Any] | None = None
    ) -> "GenerativeModel":
        """A generator of K steps: G(z) = D(sigma_1 z_1, sigma_1), then D(G + sigma_k z_k, sigma_k) for k = 2 .. K.

        Args:
            denoiser: D.
            sigmas: sigma_1 > ... > sigma_K > 0; one number for a one-step generator.
            facts: see the attribute.

        Raises:
            ValueError: where the levels do not fall, or one is not positive and finite.
        """
        levels = torch.atleast_1d(torch.as_tensor(sigmas, dtype=torch.float64))
        return cls(denoiser.eval(), "student", levels, facts=facts or {})

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
        steps = len(self.sigmas) if self.kind == "student" else 2 * (len(self.sigmas) - 1) - 1
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

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one sample is made from: sample_shape, or (K, *sample_shape) for K > 1 steps."""
        return self.sample_shape if self._blocks == 1 else (self._blocks, *self.sample_shape)

    @property
    def _blocks(self) -> int:
        """How often noise enters a sample."""
        return len(self.sigmas) if self.kind == "student" else 1

    def noise(self, n: int, seed: int) -> Tensor:
        """The n latents of a seed, standard normal [n, *latent_shape]; the numbers that stock diffusers draws."""
        return self.latents(n, torch.Generator().manual_seed(seed))

    def latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n latents, standard normal [n, *latent_shape], on the generator's device; None for torch's own on the CPU.

        The noise of each step is drawn for all samples before that of the next one, so that a student's first step has
        the noise that a one-step student and a teacher get from the same seed.
        """
        device = torch.device("cpu") if generator is None else generator.device
        blocks = [torch.randn(n, *self.sample_shape, generator=generator, device=device) for _ in range(self._blocks)]
        return blocks[0] if len(blocks) == 1 else torch.stack(blocks, dim=1)

    def labels(self, n: int) -> Tensor | None:
        """The default conditions: classes in turn, int64 [n]; None for an unconditional model."""
        return torch.arange(n) % self.num_classes if self.num_classes else None

    def sample(self, noise: Tensor, labels: Tensor | None = None, batch_size: int = 500) -> Tensor:
        """Samples on the CPU, [B, *sample_shape] float32.

        Args:
            noise: standard normal, [B, *latent_shape].
            labels: int64 [B] in [0, num_classes); not read by an unconditional model.
            batch_size: samples made at once; they do not depend on it.

        Raises:
            ValueError: if the noise is of another shape, or a conditional model gets no labels or one out of range.
        """
        if noise.shape[1:] != self.latent_shape:
            raise ValueError(
                f"latents of this {self.kind} are [n, {', '.join(map(str, self.latent_shape))}]: "
                f"got {list(noise.shape)}; draw them by noise or latents of the model"
            )
        labels = check_labels(labels, self.num_classes).to(self.device) if self.num_classes else None
        few_steps = one_step if self._blocks == 1 else multi_step
        sampler = few_steps if self.kind == "student" else heun
        return generate(
            sampler, self.denoiser, noise.to(self.device), self.sigmas, labels, self.guidance, batch_size
        ).cpu()


def _check_levels(sigmas: Tensor) -> None:
    falls = sigmas.ndim == 1 and len(sigmas) and sigmas[0].isfinite() and (sigmas.diff() < 0).all() and sigmas[-1] > 0
    if not falls:  # a nan falls nowhere
        raise ValueError(f"noise levels of a student are positive and fall strictly: got {sigmas.tolist()}")


def check_labels(labels: Tensor | None, num_classes: int) -> Tensor:
    """labels, or ValueError where they are missing or outside [0, num_classes)."""
    if labels is None:
        raise ValueError(f"a class-conditional model needs one label per sample in [0, {num_classes}): got none")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"a class label lies in [0, {num_classes}): got {int(outside[0])}")
    return labels

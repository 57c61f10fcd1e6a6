"""A denoiser with the way to sample from it: what checkpoints and exported folders hold."""

import functools
import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fdistill.core.distributed import gathered, warn_on_rank_0
from fdistill.core.random import seeded
from fdistill.models.adapters import adapter_layers, merged
from fdistill.models.condition import Condition, Conditioned
from fdistill.models.denoiser import Denoiser, lay_channels_last
from fdistill.models.guidance import Guidance
from fdistill.models.vae import Decoder
from fdistill.sampling import Heun, Sampler, Start, generate, multi_step, one_step
from fdistill.sampling.student_steps import check_start, check_temperature, start_scale
from fdistill.theory.noise_levels import karras_grid

AT_ONCE = 500  # samples
VALUES_AT_ONCE = AT_ONCE * 3 * 32 * 32  # and no more numbers than so many small images have
VALUES_IN_CACHE = 64 * 28 * 28  # of a batch on a CPU, whose activations should stay in its cache
CHANNELS_LAST_ABOVE = 16  # pixels of a side


@dataclass
class GenerativeModel:
    """A student (one evaluation at each of its K noise levels) or a teacher (a sampler on a grid of them).

    Attributes:
        denoiser: in evaluation mode; its device is where samples are made.
        kind: "student" or "teacher".
        sigmas: noise levels visited, falling; all > 0 for a student, the last 0 for a teacher.
        guidance: while sampling: a scale of classifier-free guidance (1 for none) or a `Guidance`.
        facts: plain values that a model card tells (divergence, seed, step, teacher, data ...).
        sampler: a teacher's, Heun where none is given; None for a student.
        decoder: makes images of its samples, where they are latents.
        start: what its first step makes of noise, see `Start`.
        first_step: of a student of several steps, what makes the first of them in its place, and its guidance.
        autocast: type in which its network computes while sampling, that of a run in mixed precision; None for its own.
        temperature: factor of a student's noise, at all its steps, that it was not trained with: above 1 recall rises
            and precision falls, below 1 the opposite, which is the truncation of arXiv 1809.11096.
    """

    denoiser: Denoiser
    kind: Literal["student", "teacher"]
    sigmas: Tensor
    guidance: float | Guidance = 1.0
    facts: dict[str, Any] = field(default_factory=dict)
    sampler: Sampler | None = None
    decoder: Decoder | None = None
    start: Start = "sigma"
    first_step: tuple[Denoiser, float | Guidance] | None = None
    autocast: torch.dtype | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_start(self.start)
        if check_temperature(self.temperature) != 1 and self.kind != "student":
            raise ValueError(f"temperature scales the noise of a student: got {self.temperature:g} for a teacher")
        if self.kind == "student":
            _check_levels(self.sigmas)
            if self.sampler is not None:
                raise ValueError(f"a student has no sampler but its own steps: got {type(self.sampler).__name__}")
        elif self.sampler is None:
            self.sampler = Heun()
        Guidance.of(self.guidance).check_fits(self.denoiser)
        outside = self.denoiser.noise_range.first_outside(_visited(self.sigmas, self.sampler))
        if outside is not None:  # as a file of an earlier version may say
            low, high = self.denoiser.noise_range
            warn_on_rank_0(
                f"this {self.kind} is sampled at sigma = {outside:.6g}, outside of its network's path "
                f"({low:.6g} to {high:.6g})"
            )

    @classmethod
    def student(
        cls,
        denoiser: Denoiser,
        sigmas: float | Sequence[float],
        facts: dict[str, Any] | None = None,
        start: Start = "sigma",
    ) -> "GenerativeModel":
        """A generator of K steps: G(z) = D(sigma_1 z_1, sigma_1), then D(G + sigma_k z_k, sigma_k) for k = 2 .. K.

        Args:
            denoiser: D.
            sigmas: sigma_1 > ... > sigma_K > 0; one number for a one-step generator.
            facts: see the attribute.
            start: see the attribute.

        Raises:
            ValueError: where the levels do not fall, or one is not positive and finite, or outside of D's path.
        """
        levels = torch.atleast_1d(torch.as_tensor(sigmas, dtype=torch.float64))
        _check_levels(levels)
        denoiser.noise_range.check("each noise level of a student", levels.tolist())
        return cls(denoiser.eval(), "student", levels, facts=facts or {}, start=start)

    @classmethod
    def teacher(
        cls,
        denoiser: Denoiser,
        num_steps: int,
        sigma_min: float,
        sigma_max: float,
        guidance: float | Guidance = 1.0,
        facts: dict[str, Any] | None = None,
        sampler: Sampler | None = None,
        sigmas: Tensor | None = None,
    ) -> "GenerativeModel":
        """A teacher on EDM's grid, or the given one; with Heun 2 num_steps - 1 evaluations, twice that with guidance.

        Args:
            denoiser: D.
            num_steps: steps of EDM's grid, >= 1.
            sigma_min: its last level above 0.
            sigma_max: its first level.
            guidance: see the attribute.
            facts: see the attribute.
            sampler: see the attribute.
            sigmas: a grid of its own, strictly falling to >= 0, in place of the three numbers.

        Raises:
            ValueError: for an impossible grid, one that the sampler cannot use or that leaves D's path, or a guide
                that does not fit.
        """
        grid = karras_grid(num_steps, sigma_min, sigma_max) if sigmas is None else sigmas
        denoiser.noise_range.check("each level of a sampling grid", _visited(grid, sampler or Heun()))
        return cls(denoiser.eval(), "teacher", grid, guidance, facts or {}, sampler)

    def merged(self) -> "GenerativeModel":
        """The same model with its denoiser's adapters added to weights of its own; itself where it has none."""
        return replace(self, denoiser=merged(self.denoiser)) if adapter_layers(self.denoiser) else self

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.denoiser.sample_shape

    @property
    def num_classes(self) -> int:
        """How many conditions it takes, where these are classes; 0 for every other model."""
        return self.denoiser.num_classes

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample; two where guidance acts."""
        levels = _visited(self.sigmas, self.sampler)
        made_by = [(self.denoiser, self.guidance)] * len(levels)
        if self.first_step is not None:
            made_by[0] = self.first_step
        return sum(Guidance.of(how).cost(by, level) for level, (by, how) in zip(levels, made_by, strict=True))

    @property
    def device(self) -> torch.device:
        """Where samples are made; an analytic denoiser has buffers only, and no state."""
        tensors = itertools.chain(self.denoiser.parameters(), self.denoiser.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def edm_grid(self, num_steps: int) -> Tensor:
        """EDM's grid of so many steps between the model's first level and its last above 0, [num_steps + 1]."""
        positive = self.sigmas[self.sigmas > 0]
        return karras_grid(num_steps, float(positive[-1]), float(positive[0]))

    def to(self, device: torch.device | str) -> "GenerativeModel":
        """Move the denoiser, its guide and its decoder, in place."""
        for part in (*self._denoisers(), self.decoder):
            if part is not None:
                part.to(device)
        return self

    def sampling_on(self, device: torch.device | str) -> "GenerativeModel":
        """Move it to where it will only sample, in place; not for networks that learn or are written.

        On CUDA the networks of a run in mixed precision compute in bf16, as they did while the run measured itself.
        On the CPU convolutions also lie channels last, where images are larger than 16 pixels: the same samples but for
        rounding, faster (tools/benchmark_sampling.py).
        """
        self.to(device)
        if self.device.type == "cuda" and self.facts.get("precision") == "bf16-mixed":
            self.autocast = torch.bfloat16
        if self.device.type == "cpu" and self.sample_shape[-1] > CHANNELS_LAST_ABOVE:
            for denoiser in self._denoisers():
                lay_channels_last(denoiser)
        return self

    def _denoisers(self) -> list[Denoiser]:
        pairs = [(self.denoiser, self.guidance), *([] if self.first_step is None else [self.first_step])]
        return [part for by, how in pairs for part in (by, Guidance.of(how).guide) if part is not None]

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
        return self.latents(n, seeded(seed))

    def latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n latents, standard normal [n, *latent_shape], on the generator's device; None for torch's own on the CPU.

        The noise of each step is drawn for all samples before that of the next one, so that a student's first step has
        the noise that a one-step student and a teacher get from the same seed.
        """
        device = torch.device("cpu") if generator is None else generator.device
        blocks = [torch.randn(n, *self.sample_shape, generator=generator, device=device) for _ in range(self._blocks)]
        return blocks[0] if len(blocks) == 1 else torch.stack(blocks, dim=1)

    def labels(self, n: int) -> Tensor | None:
        """The default conditions: classes in turn, int64 [n]; None for a model that takes no classes."""
        return torch.arange(n) % self.num_classes if self.num_classes else None

    def condition(self, given: Conditioned, n: int) -> Condition:
        """What its network takes for n samples: class numbers int64 [n] become the conditions with these numbers.

        Raises:
            ValueError: where it is conditional and gets nothing that it takes, or a class out of range.
        """
        takes = self.denoiser.takes
        if self.num_classes and given is None:
            raise ValueError(
                f"a class-conditional model needs one label per sample in [0, {self.num_classes}): got none"
            )
        condition = Condition.of(given, takes).only(takes)
        condition.check(takes, n)
        condition.check_classes(takes)
        return condition

    def whole(self) -> AbstractContextManager[None]:
        """Inside, this rank may sample by itself; all ranks enter and leave together, where weights are sharded."""
        return gathered(*self._denoisers())

    def sample(self, noise: Tensor, condition: Conditioned = None, batch_size: int | None = None) -> Tensor:
        """Samples on the CPU, [B, *sample_shape] float32.

        Where weights are sharded, all ranks have to ask equally often, for any number of samples, or be inside `whole`.

        Args:
            noise: standard normal, [B, *latent_shape].
            condition: what its network takes, or class numbers int64 [B] in [0, num_classes); not read by an
                unconditional model.
            batch_size: samples made at once; they do not depend on it. Where not given 500, fewer of more than 3,072
                values each (on the CPU 784), and half as many where the device's memory is not enough.

        Raises:
            ValueError: if the noise is of another shape, or a conditional model gets nothing that it takes.
        """
        if noise.shape[1:] != self.latent_shape:
            raise ValueError(
                f"latents of this {self.kind} are [n, {', '.join(map(str, self.latent_shape))}]: "
                f"got {list(noise.shape)}; draw them by noise or latents of the model"
            )
        condition = self.condition(condition, len(noise)).to(self.device)
        few_steps = functools.partial(one_step, start=self.start)
        if self._blocks > 1:
            few_steps = functools.partial(multi_step, start=self.start, first=self.first_step)
        sampler = few_steps if self.sampler is None else self.sampler
        noise = noise if self.temperature == 1 else noise * self.temperature
        if self.sampler is not None and self.start != "sigma":
            noise = noise * (start_scale(float(self.sigmas[0]), self.start) / float(self.sigmas[0]))
        values = VALUES_IN_CACHE if self.device.type == "cpu" else VALUES_AT_ONCE
        size = batch_size or max(1, min(AT_ONCE, values // math.prod(self.sample_shape)))
        with self.whole(), self._precision():
            fixed = (self.denoiser, noise.to(self.device), self.sigmas, condition, self.guidance)
            while True:
                try:
                    return generate(sampler, *fixed, size).cpu()
                except torch.OutOfMemoryError:
                    if batch_size is not None or size == 1:
                        raise
                size //= 2  # outside the handler, which holds the memory of what failed

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def decode(self, samples: Tensor) -> Tensor:
        """Images [B, C, H, W] of samples that are latents; without a decoder, the samples as they are."""
        return samples if self.decoder is None else self.decoder(samples)

    @functools.cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one decoded sample."""
        if self.decoder is None:
            return self.sample_shape
        return tuple(self.decode(torch.zeros(1, *self.sample_shape)).shape[1:])


def _visited(sigmas: Tensor, sampler: Sampler | None) -> list[float]:
    """The levels at which the denoiser is evaluated; without a sampler those of a student."""
    return sigmas.tolist() if sampler is None else sampler.visits(sigmas)


def _check_levels(sigmas: Tensor) -> None:
    falls = sigmas.ndim == 1 and len(sigmas) and sigmas[0].isfinite() and (sigmas.diff() < 0).all() and sigmas[-1] > 0
    if not falls:  # a nan falls nowhere
        raise ValueError(f"noise levels of a student are positive and fall strictly: got {sigmas.tolist()}")

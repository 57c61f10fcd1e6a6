"""Guidance: a denoiser is pushed away from a worse one, itself without the condition or a weaker network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fdistill.models.condition import Conditioned, declared, fits
from fdistill.models.denoiser import Denoiser

Norm = Literal["sample", "row", "token", "cap"]
"""What is rescaled by itself: a sample by its standard deviation (arXiv 2305.08891, section 3.4; SD and SDXL), each row
of each channel by its norm (Lumina 2), each token of 2 x 2 latents with their channels by its norm (Qwen-Image); a cap
shortens a sample whose norm is larger than `rescale` times what it is without guidance (Z-Image)."""


@dataclass(frozen=True)
class Guidance:
    """D_worse + scale (D - D_worse) at noise levels in (sigma_low, sigma_high], D itself outside (arXiv 2404.07724).

    With rescale, the guided prediction of the network (noise, v, velocity) is brought to the size that it has without
    guidance: F_guided (1 - rescale + rescale |F| / |F_guided|); by a cap F_guided min(1, rescale |F| / |F_guided|).

    Attributes:
        scale: 1 is no guidance, and costs one evaluation; all others two.
        sigma_low: noise level above which guidance starts, >= 0.
        sigma_high: noise level up to which it acts, > sigma_low.
        guide: the worse denoiser (autoguidance, arXiv 2406.02507); None evaluates the denoiser itself without its
            condition (classifier-free guidance), which changes nothing where it takes none.
        rescale: share of the rescaled prediction, in [0, 1].
        norm: what is rescaled by itself.
    """

    scale: float
    sigma_low: float = 0.0
    sigma_high: float = math.inf
    guide: Denoiser | None = None
    rescale: float = 0.0
    norm: Norm = "sample"

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance is a finite scale: got {self.scale}")
        if not 0 <= self.sigma_low < self.sigma_high:
            raise ValueError(
                "guidance acts between noise levels 0 <= sigma_low < sigma_high: "
                f"got {self.sigma_low} and {self.sigma_high}"
            )
        if not 0 <= self.rescale <= 1 or self.norm not in get_args(Norm):
            raise ValueError(
                f"a guided prediction is rescaled by a share in [0, 1] over one of {', '.join(get_args(Norm))}: got "
                f"{self.rescale} and {self.norm!r}"
            )

    @classmethod
    def of(cls, guidance: "float | Guidance") -> "Guidance":
        """A scale as classifier-free guidance at every noise level; a `Guidance` as it is."""
        return guidance if isinstance(guidance, Guidance) else cls(float(guidance))

    @classmethod
    def limited(
        cls,
        scale: float,
        interval: Sequence[float] | None,
        guide: Denoiser | None,
        rescale: float = 0.0,
        norm: Norm = "sample",
    ) -> "float | Guidance":
        """From settings: the scale alone where there is nothing beside it.

        Raises:
            ValueError: for an interval that is none, or settings that a scale of 1 would leave without effect.
        """
        if interval is None and guide is None and not rescale:
            return cls.of(scale).scale
        if scale == 1 and not (interval is None and guide is None):
            raise ValueError("an interval or a guide acts at a guidance scale other than 1: give guidance too")
        if interval is not None and len(interval) != 2:
            raise ValueError(f"a guidance interval is two noise levels, low and high: got {list(interval)}")
        low, high = interval or (0.0, math.inf)
        return cls(float(scale), float(low), float(high), guide, rescale, norm)

    @classmethod
    def from_plain(cls, value: float | dict[str, Any]) -> "float | Guidance":
        """What `plain` described; the guide is in evaluation mode and without its weights.

        Raises:
            ValueError, TypeError, KeyError: for something else.
        """
        if not isinstance(value, dict):
            return cls.of(value).scale
        low, high = value["interval"]
        guide = None if value["guide"] is None else Denoiser.from_spec(value["guide"]).requires_grad_(False).eval()
        rescaled = {name: value[name] for name in ("rescale", "norm") if name in value}
        return cls(value["scale"], low, math.inf if high is None else high, guide, **rescaled)

    def plain(self) -> float | dict[str, Any]:
        """The scale alone where that says all, else all settings: None for no end, the guide's description."""
        if self.interval is None and self.guide is None and not self.rescale:
            return self.scale
        high = None if self.sigma_high == math.inf else self.sigma_high
        guide = None if self.guide is None else self.guide.spec()
        rescaled = {"rescale": self.rescale, "norm": self.norm} if self.rescale else {}
        return {"scale": self.scale, "interval": [self.sigma_low, high], "guide": guide, **rescaled}

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: Tensor | float, condition: Conditioned = None) -> Tensor:
        """The guided denoised sample, [B, *sample_shape].

        Args:
            denoiser: D.
            x: noised samples, [B, *sample_shape].
            sigma: noise levels [B], or one for all: then nothing is evaluated that is not needed.
            condition: of the samples; not read by an unconditional denoiser.
        """
        levels = sigma if isinstance(sigma, Tensor) else x.new_full((len(x),), sigma)
        denoised = denoiser(x, levels, condition)
        if not isinstance(sigma, Tensor) and self.cost(denoiser, sigma) == 1:
            return denoised
        return self.push(denoised, denoiser, x, levels, condition)

    def push(self, denoised: Tensor, denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Conditioned) -> Tensor:
        """The guided value where D(x, sigma [B], condition) is known; evaluates the worse denoiser at all of x."""
        if not self._acts_on(denoiser):
            return denoised
        if self.guide is None:
            worse = denoiser(x, sigma, denoiser.null(len(x), x.device))
        else:
            worse = self.guide(x, sigma, condition)
        pushed = worse + self.scale * (denoised - worse)
        if self.rescale:
            pushed = self._rescaled(pushed, denoised, denoiser.carried(x, sigma))
        if self.interval is None:
            return pushed
        return torch.where(self._inside(sigma).reshape(-1, *[1] * (x.ndim - 1)), pushed, denoised)

    def _rescaled(self, pushed: Tensor, denoised: Tensor, carried: Tensor) -> Tensor:
        """D is `carried` and a number times F, so that both have the same ratio of sizes."""
        guided = pushed - carried
        ratio = _size(denoised - carried, self.norm) / _size(guided, self.norm)
        if self.norm == "cap":
            return pushed + ((self.rescale * ratio).clamp_max(1) - 1) * guided
        if self.norm == "token":
            ratio = ratio.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return pushed + self.rescale * (ratio - 1) * guided

    def cost(self, denoiser: Denoiser, sigma: float) -> int:
        """Evaluations at one noise level: 2 where guidance acts, 1 where it does not."""
        return 1 + (self._acts_on(denoiser) and bool(self._inside(torch.tensor(sigma))))

    def check_fits(self, denoiser: Denoiser) -> None:
        """Raises ValueError where the guide is of other samples, or of other classes than the denoiser's (or none).

        So it does where the denoiser would have to be its own guide, and knows no "no class".
        """
        guide, shape = self.guide, denoiser.sample_shape
        if self.rescale and self.norm == "token" and (len(shape) != 3 or shape[1] % 2 or shape[2] % 2):
            raise ValueError(f"tokens are of 2 x 2 latents: expected samples of even height and width, got {shape}")
        if guide is None:
            if self._acts_on(denoiser):
                denoiser.null(0)  # which says why not
            return
        if guide.sample_shape != denoiser.sample_shape or not fits(guide.takes, denoiser.takes):
            raise ValueError(
                f"a guide sees the samples and the condition of what it guides: expected shape {denoiser.sample_shape} "
                f"and {declared(denoiser.takes)} (or none), got {guide.sample_shape} and {declared(guide.takes)}"
            )

    @property
    def interval(self) -> tuple[float, float] | None:
        """The noise levels between which it acts; None for all."""
        return (self.sigma_low, self.sigma_high) if self.sigma_low > 0 or self.sigma_high < math.inf else None

    def __str__(self) -> str:
        where = "" if self.interval is None else f" in ({float(self.sigma_low)}, {float(self.sigma_high)}]"
        rescaled = f" rescaled by {float(self.rescale)} over each {self.norm}" if self.rescale else ""
        return f"{float(self.scale)}{where}{'' if self.guide is None else ' by a guide'}{rescaled}"

    def _acts_on(self, denoiser: Denoiser) -> bool:
        return self.scale != 1 and (self.guide is not None or bool(denoiser.takes))

    def _inside(self, sigma: Tensor) -> Tensor:
        """Decided in single precision, so that a level on the border is counted as it is sampled."""
        sigma = sigma.float()
        return (sigma > self.sigma_low) & (sigma <= self.sigma_high)


def _size(prediction: Tensor, norm: Norm) -> Tensor:
    """Of each sample, row or token, to be multiplied with; of tokens [B, 1, H/2, W/2]."""
    if norm == "sample":
        return prediction.std(dim=tuple(range(1, prediction.ndim)), keepdim=True)
    if norm == "cap":
        return prediction.flatten(1).norm(dim=1).reshape(-1, *[1] * (prediction.ndim - 1))
    if norm == "row":
        return prediction.norm(dim=-1, keepdim=True)
    return (4 * F.avg_pool2d(prediction.square().sum(1, keepdim=True), 2)).sqrt()

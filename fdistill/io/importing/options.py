"""What an import is told beside the source, and what it does not have to be told."""

import math
from pathlib import Path
from typing import NamedTuple

from fdistill.core.weight_files import CheckpointError
from fdistill.models.denoiser import Denoiser

MOST_STEPS = 10_000
NUM_STEPS = 18  # Heun steps of EDM's small teachers: 35 evaluations (arXiv 2206.00364)


class Options(NamedTuple):
    """Everything has a default; what a source has no use for is an error.

    Attributes:
        scheduler: scheduler_config.json of a network without one.
        vae: folder of the VAE of a network without one.
        config: YAML file that describes the network of a .safetensors file.
        num_steps: steps of the teacher's sampler, 1 to 10,000.
        guidance: classifier-free guidance scale of the teacher's samples.
        sigma_data: standard deviation of pixels or latents, > 0.
        resolution: side of a text-to-image teacher's images in pixels, or height and width.
        lora: file of an adapter that is merged into the network of a text-to-image pipeline.
        last_class_is_none: whether a UNet2DModel's last class means "no class".
        guidance_rescale: share in [0, 1] of a guided prediction rescaled as the pipeline does under that name.
    """

    scheduler: Path | None = None
    vae: Path | None = None
    config: Path | None = None
    num_steps: int | None = None
    guidance: float | None = None
    sigma_data: float | None = None
    last_class_is_none: bool = False
    resolution: tuple[int, ...] | None = None
    lora: Path | None = None
    guidance_rescale: float | None = None

    def check_used(self, source: Path, what: str, used: set[str]) -> None:
        """Raises ValueError where an option is given that a source of this kind has no use for."""
        unused = [name for name, value in self._asdict().items() if value not in (None, False) and name not in used]
        if unused:
            raise ValueError(
                f"{source} is {what}, which has no use for {unused[0]}: leave --{unused[0]} out "
                f"(it takes {', '.join(sorted(used))})"
            )

    def check_numbers(self) -> None:
        """Raises ValueError for numbers outside their range."""
        if self.num_steps is not None and not 1 <= self.num_steps <= MOST_STEPS:
            raise ValueError(
                f"num_steps is a number of sampling steps and positive, at most {MOST_STEPS:,}: got {self.num_steps}"
            )
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance is a finite scale: got {self.guidance}")
        if self.guidance_rescale is not None and not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale is a share in [0, 1]: got {self.guidance_rescale}")
        if self.resolution is not None and not (len(self.resolution) in (1, 2) and min(self.resolution) > 0):
            raise ValueError(f"resolution is a side in pixels, or height and width: got {list(self.resolution)}")
        if self.sigma_data is not None and not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data is a standard deviation, finite and positive: got {self.sigma_data}")

    def scale(self, denoiser: Denoiser, source: Path) -> float:
        """The guidance scale, which a network has to have learned.

        Raises:
            CheckpointError: if it has no classes, or knows no "no class".
        """
        if self.guidance in (None, 1) or (denoiser.num_classes and denoiser.network.knows_no_class):
            return 1.0 if self.guidance is None else self.guidance
        what = "was trained with a class for every sample" if denoiser.num_classes else "has no classes"
        raise CheckpointError(f'guidance compares with "no class", and {source} {what}: leave --guidance out')

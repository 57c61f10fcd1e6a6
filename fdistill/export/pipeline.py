"""A diffusers pipeline for students whose network is no diffusers class; fdistill must be installed to load it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from fdistill.export.folder import export_folder, read_folder
from fdistill.generative_model import GenerativeModel


class OneStepPipeline(DiffusionPipeline):
    """Call it like any class-conditional diffusers pipeline; one network evaluation for each step of the student.

    Load it by ``OneStepPipeline.from_pretrained(folder)``, or without naming it by
    ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.
    """

    def __init__(self, model: GenerativeModel) -> None:
        """Args:
        model: a student.
        """
        super().__init__()
        if model.kind != "student":
            raise ValueError(f"a one-step pipeline runs a student: got a {model.kind}; distil it first")
        self.model = model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "OneStepPipeline":
        """Load an exported folder. Only local folders; further arguments of diffusers' loader have no meaning here."""
        return cls(read_folder(pretrained_model_name_or_path))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the folder again."""
        export_folder(self.model, save_directory)

    def to(self, device: torch.device | str) -> "OneStepPipeline":
        """Move the network."""
        self.model.to(device)
        return self

    def __call__(
        self,
        batch_size: int = 1,
        class_labels: torch.Tensor | list[int] | int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate.

        Args:
            batch_size: number of samples.
            class_labels: one class for all or one for each, in [0, num_classes); None draws them at random.
            num_inference_steps: the student's own number of steps, which is what it makes where none is given.
            generator: of noise and random classes, on the CPU.
            latents: standard normal noise [batch_size, *latent_shape] of the model instead.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]), "pt" (samples [B, ...] as the model made them) or
                "latent" (the same without the decoder of a model that has one).
            return_dict: whether to wrap the samples in ImagePipelineOutput.
        """
        steps = len(self.model.sigmas)
        if num_inference_steps not in (None, steps):
            raise ValueError(
                f"a student makes the steps it was trained for: expected num_inference_steps={steps}, "
                f"got {num_inference_steps}"
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is pil, np, pt or latent: got {output_type!r}")
        shape = (batch_size, *self.model.latent_shape)
        if latents is None:
            latents = self.model.latents(batch_size, generator)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents hold one noise sample per image: expected {shape}, got {tuple(latents.shape)}")
        samples = self.model.sample(latents, self._labels(class_labels, batch_size, generator))
        if output_type != "latent":
            samples = self.model.decode(samples)
        images: Any = samples
        if output_type in ("pil", "np"):
            if samples.ndim != 4:
                raise ValueError(f"samples of shape {self.model.sample_shape} are no images: use output_type='pt'")
            images = (samples / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = [Image.fromarray(np.round(image * 255).astype(np.uint8).squeeze()) for image in images]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, given: Any, n: int, generator: torch.Generator | None) -> torch.Tensor | None:
        if not self.model.num_classes:
            return None
        if given is None:
            return torch.randint(self.model.num_classes, (n,), generator=generator)
        labels = torch.as_tensor(given)
        if labels.ndim and len(labels) != n:
            raise ValueError(f"class_labels is one class, or one for each of the {n} samples: got {len(labels)}")
        return labels.expand(n)


class StudentLoader:
    """What model_index.json names as the loader of the component ``model``."""

    @classmethod
    def from_pretrained(cls, component_folder: str | Path, **kwargs: Any) -> GenerativeModel:
        """The model of the folder around ``component_folder``; diffusers' loading options mean nothing here."""
        return read_folder(Path(component_folder).parent)

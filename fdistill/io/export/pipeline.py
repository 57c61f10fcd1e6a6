"""A diffusers pipeline for students whose network is no diffusers class; fdistill must be installed to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor, nn

from fdistill.io.export.folder import export_folder
from fdistill.io.load import read_folder
from fdistill.models.condition import Condition, Conditioned
from fdistill.sampling.generator import GenerativeModel


class StudentModule(nn.Module):
    """A student's network and VAE as the one component of a pipeline, which moves and is rounded as a whole.

    It has the attributes of the `GenerativeModel` that it runs.
    """

    def __init__(self, student: GenerativeModel) -> None:
        """Args:
        student: whose modules they are.

        Raises:
            CheckpointError: where it has a VAE that cannot be read.
        """
        super().__init__()
        self.student, self.denoiser = student, student.denoiser
        self.vae = None if student.decoder is None else student.decoder.vae

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.student.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; what they make of float32 latents is computed in it."""
        return next((p.dtype for p in self.denoiser.parameters()), torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or round the weights; a network's tables (frequencies of its embeddings) stay as exact as they are."""
        tables = [(part, name, table) for part in self.denoiser.modules() for name, table in part._buffers.items()]
        super().to(*args, **kwargs)
        for part, name, table in tables:
            moved = part._buffers[name]
            if table is not None and moved is not None:
                part._buffers[name] = table.to(moved.device)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_modules", ()) or "student" not in self.__dict__:
            return super().__getattr__(name)
        return getattr(self.student, name)

    def forward(self, latents: Tensor, condition: Conditioned, decode: bool) -> Tensor:
        """Samples [B, ...] float32 on the CPU; all that reads weights is in here, for hooks that bring them."""
        samples = self.student.sample(latents.to(self.dtype), condition).float()
        if self.student.decoder is None or not decode:
            return samples
        self.student.decoder.to(self.device)
        return self.student.decode(samples)


class OneStepPipeline(DiffusionPipeline):
    """Call it like any class-conditional diffusers pipeline; one network evaluation for each step of the student.

    Load it by ``OneStepPipeline.from_pretrained(folder)``, or without naming it by
    ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.
    """

    model_cpu_offload_seq = "model"

    def __init__(self, model: GenerativeModel | StudentModule) -> None:
        """Args:
        model: a student, or the component of another such pipeline.
        """
        super().__init__()
        if isinstance(model, GenerativeModel):
            if model.kind != "student":
                raise ValueError(f"a one-step pipeline runs a student: got a {model.kind}; distil it first")
            model = StudentModule(model)
        self.register_modules(model=model)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "OneStepPipeline":
        """Load an exported folder, in torch_dtype where that is given.

        Only local folders; further arguments of diffusers' loader have no meaning here.
        """
        return cls(StudentLoader.load(pretrained_model_name_or_path, **kwargs))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the folder again."""
        export_folder(self.model.student, save_directory)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """The same as `enable_model_cpu_offload`.

        A network is evaluated in two halves, not as a module, so its layers come to the accelerator together.
        """
        self.enable_model_cpu_offload(*args, **kwargs)

    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Any = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate.

        Args:
            batch_size: number of samples.
            class_labels: one class for all or one for each, in [0, num_classes), or these by the names of several sets
                of classes; None draws them at random.
            num_inference_steps: the student's own number of steps, which is what it makes where none is given.
            generator: of noise and random classes, on the CPU.
            latents: standard normal noise [batch_size, *latent_shape] of the model instead.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]), "pt" (samples [B, ...] as the model made them) or
                "latent" (the same without the decoder of a model that has one).
            return_dict: whether to wrap the samples in ImagePipelineOutput.
        """
        student = self.model.student
        steps = len(student.sigmas)
        if num_inference_steps not in (None, steps):
            raise ValueError(
                f"a student makes the steps it was trained for: expected num_inference_steps={steps}, "
                f"got {num_inference_steps}"
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is pil, np, pt or latent: got {output_type!r}")
        shape = (batch_size, *student.latent_shape)
        if latents is None:
            latents = student.latents(batch_size, generator)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents hold one noise sample per image: expected {shape}, got {tuple(latents.shape)}")
        condition = self._condition(class_labels, batch_size, generator)
        samples = self.model(latents, condition, decode=output_type != "latent")
        self.maybe_free_model_hooks()
        images: Any = samples
        if output_type in ("pil", "np"):
            if samples.ndim != 4:
                raise ValueError(f"samples of shape {student.sample_shape} are no images: use output_type='pt'")
            images = (samples / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = [Image.fromarray(np.round(image * 255).astype(np.uint8).squeeze()) for image in images]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _condition(self, given: Any, n: int, generator: torch.Generator | None) -> Conditioned:
        num_classes = self.model.student.num_classes
        if not num_classes:
            return None
        if given is None:
            return torch.randint(num_classes, (n,), generator=generator)
        if isinstance(given, Mapping):
            return Condition({name: _expanded(value, n) for name, value in given.items()})
        return _expanded(given, n)


def _expanded(given: Any, n: int) -> Tensor:
    labels = torch.as_tensor(given)
    if labels.ndim and len(labels) != n:
        raise ValueError(f"class_labels is one class, or one for each of the {n} samples: got {len(labels)}")
    return labels.expand(n)


class StudentLoader:
    """What model_index.json names as the loader of the component ``model``."""

    @classmethod
    def from_pretrained(cls, component_folder: str | Path, **kwargs: Any) -> StudentModule:
        """The model of the folder around ``component_folder``; of diffusers' loading options torch_dtype is read."""
        return cls.load(Path(component_folder).parent, **kwargs)

    @staticmethod
    def load(
        folder: str | Path, torch_dtype: torch.dtype | None = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> StudentModule:
        """The student of an exported folder, rounded where a type is given."""
        return StudentModule(read_folder(folder)).to(dtype or torch_dtype or torch.float32)

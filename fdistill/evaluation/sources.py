"""What can be evaluated: our own models, any local diffusers pipeline of images, and finished pictures or samples."""

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fdistill.core.file_suffixes import ARCHIVES, IMAGES
from fdistill.core.presets import checkpoint as known_checkpoint
from fdistill.core.presets import checkpoints
from fdistill.core.random import seeded
from fdistill.core.weight_files import CheckpointError, read_json
from fdistill.data.image_files import Images
from fdistill.data.image_folder import list_folder
from fdistill.evaluation.sample_files import SUFFIXES, FixedSet, SamplesSource
from fdistill.io.checkpoints import RECORD
from fdistill.io.load import load_model
from fdistill.io.strangers import run_checkpoint, what_lies_at
from fdistill.models.condition import check_classes
from fdistill.sampling.generator import GenerativeModel

_BATCH = 64  # samples in a pipeline at once
_CONDITIONS = {"prompt", "image"}  # what a pipeline may leave optional and cannot do without


class Source(Protocol):
    """Where samples come from.

    Attributes:
        sample_shape: of one sample, (C, H, W) for images.
        num_classes: of the samples it labels; 0 where it makes or has no classes.
        evaluations: network evaluations for one sample; None for a fixed set, which generates nothing.
        facts: plain values that a report tells of it.
    """

    facts: dict[str, Any]

    @property
    def sample_shape(self) -> tuple[int, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def evaluations(self) -> int | None: ...

    def labels(self, n: int, seed: int, wanted: Tensor | None = None) -> Tensor | None:
        """The classes int64 [n] that n samples of a seed have: `wanted` where it can be asked for them.

        None where it has no classes.
        """

    def draw(self, n: int, seed: int, labels: Tensor | None = None) -> Tensor:
        """n samples [n, *sample_shape], float32 on the CPU, images in [-1, 1]; of the classes `labels` gives.

        Raises:
            ValueError: for classes that it does not have, or more samples than there are.
        """


class ModelSource:
    """A student or a teacher of ours; both start from the same latents of a seed."""

    def __init__(self, model: GenerativeModel) -> None:
        self.model = model
        self.sample_shape, self.num_classes = model.image_shape, model.num_classes
        self.evaluations, self.facts = model.evaluations, model.facts

    def labels(self, n: int, seed: int, wanted: Tensor | None = None) -> Tensor | None:
        """`wanted`, or the classes in turn."""
        return self.model.labels(n) if wanted is None or not self.num_classes else wanted

    def draw(self, n: int, seed: int, labels: Tensor | None = None) -> Tensor:
        """Samples of the model; images where it makes latents."""
        return self.model.decode(self.model.sample(self.model.noise(n, seed), self.labels(n, seed, labels)))


class DiffusersSource:
    """A local folder of diffusers' `save_pretrained` that makes images, unconditional or by `class_labels`.

    Nothing is downloaded and no code of the folder is run. The pipeline clips its images to [-1, 1].

    Args:
        folder: with a model_index.json.
        num_inference_steps: of its scheduler, >= 1; the pipeline's own default where not given.
        device: where to generate.

    Raises:
        CheckpointError: if diffusers cannot load or run the folder, or its pipeline asks for more than classes.
    """

    def __init__(
        self, folder: Path | str, num_inference_steps: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if num_inference_steps is not None and num_inference_steps < 1:
            raise CheckpointError(f"num_inference_steps of a pipeline: expected >= 1, got {num_inference_steps}")
        self._folder, self._steps = Path(folder), num_inference_steps
        self._pipeline = _load_pipeline(self._folder).to(device)
        self._takes = inspect.signature(self._pipeline.__call__).parameters
        self._network = self._checked_network()
        config: Any = self._network.config
        classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 0
        self.num_classes: int = classes if "class_labels" in self._takes else 0
        self.sample_shape = self._probed_shape()
        self.facts: dict[str, Any] = {"pipeline": type(self._pipeline).__name__, "folder": str(folder)}
        if num_inference_steps is not None:
            self.facts["num_inference_steps"] = num_inference_steps

    @functools.cached_property
    def evaluations(self) -> int:
        """Counted while one sample is made; guidance counts twice where the network sees a sample twice."""
        counted = 0

        def count(network: nn.Module, arguments: Any, output: Any) -> None:
            nonlocal counted
            counted += len(output[0])

        hook = self._network.register_forward_hook(count)
        try:
            self.draw(1, 0)
        finally:
            hook.remove()
        return counted

    def labels(self, n: int, seed: int, wanted: Tensor | None = None) -> Tensor | None:
        """`wanted`, or the classes in turn."""
        if not self.num_classes:
            return None
        return torch.arange(n) % self.num_classes if wanted is None else wanted

    def draw(self, n: int, seed: int, labels: Tensor | None = None) -> Tensor:
        """Samples of the pipeline, in batches whose noise comes from one generator on the CPU."""
        generator = seeded(seed)
        labels = self.labels(n, seed, labels)
        if labels is not None:
            check_classes(labels, self.num_classes)
        parts = torch.arange(n).split(_BATCH)
        return torch.cat([self._run(len(i), None if labels is None else labels[i], generator) for i in parts])

    def _run(self, n: int, labels: Tensor | None, generator: torch.Generator, steps: int | None = None) -> Tensor:
        steps = steps or self._steps
        arguments: dict[str, Any] = {"batch_size": n} if "batch_size" in self._takes else {}
        arguments |= {} if steps is None else {"num_inference_steps": steps}
        arguments |= {} if labels is None else {"class_labels": labels.tolist()}
        images = self._pipeline(**arguments, generator=generator, output_type="np").images
        return torch.from_numpy(np.asarray(images, dtype=np.float32)).permute(0, 3, 1, 2) * 2 - 1

    def _checked_network(self) -> nn.Module:
        """The network that is evaluated once a step, of a pipeline that asks for nothing but classes."""
        asked = [name for name, value in self._takes.items() if value.default is value.empty]
        foreign = sorted((set(asked) - {"class_labels"}) | (_CONDITIONS & set(self._takes)))
        network = getattr(self._pipeline, "unet", None) or getattr(self._pipeline, "transformer", None)
        if foreign or not isinstance(network, nn.Module):
            got = f"one that asks for {', '.join(foreign)}" if foreign else "one without"
            raise CheckpointError(
                f"{self._folder} holds a {type(self._pipeline).__name__}: expected a pipeline of images with a unet or "
                f"a transformer, unconditional or by class_labels, got {got}; put its pictures into a folder instead"
            )
        return network

    def _probed_shape(self) -> tuple[int, ...]:
        """The shape of one sample, made in two steps."""
        try:
            sample = self._run(1, self.labels(1, 0), torch.Generator().manual_seed(0), steps=2)
        except Exception as error:  # whatever the parts of a pipeline raise when they do not fit each other
            raise CheckpointError(f"diffusers cannot run {self._folder}: {_brief(error)}") from error
        return tuple(sample.shape[1:])


class ImageFolderSource(FixedSet):
    """Images of a folder or archives, with classes or without.

    They are found, converted, cropped and resized as `fdistill.data.ImageFolder` does.

    Args:
        folder: of the images; as of `ImageFolder`.
        sample_shape: (C, H, H) to convert them to, C 1 or 3; where not given, the side of the first image, and C 3
            unless all are grey.

    Raises:
        ValueError: if the folder holds no images, or sample_shape is none of square images.
    """

    def __init__(self, folder: Path | str, sample_shape: Sequence[int] | None = None) -> None:
        self._images, labels, class_names = list_folder(Path(folder))
        super().__init__(folder, len(self._images), labels, len(class_names))
        self.sample_shape = _own_shape(self._images) if sample_shape is None else tuple(sample_shape)
        channels, *sides = self.sample_shape
        if len(sides) != 2 or sides[0] != sides[1] or channels not in (1, 3):
            raise ValueError(
                f"{folder} holds images, which are compared with square images of 1 or 3 channels: "
                f"got samples of shape {self.sample_shape}; give other data"
            )
        self.facts = {"folder": str(folder), "images": self.count}

    def read(self, numbers: Tensor) -> Tensor:
        channels, side, _ = self.sample_shape
        pixels = [self._images.read(i, side, channels) for i in numbers.tolist()]
        return torch.stack(pixels).float() / 127.5 - 1


def open_source(
    path: Path | str,
    device: torch.device | str = "cpu",
    sample_shape: Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    num_classes: int | None = None,
) -> Source:
    """The source at a path: a run's .ckpt, an exported folder, a diffusers pipeline, images, or samples in a .npz.

    Args:
        path: which of them it is, is read from what lies there; or the name of a shipped checkpoint.
        device: where samples are made.
        sample_shape: what a folder of images is converted to; see ImageFolderSource.
        num_inference_steps: of a diffusers pipeline; the others have no use for it.
        num_classes: that the labels in a file of samples are of; see SamplesSource.

    Raises:
        CheckpointError: with one line that says what is there, if it is none of these or broken.
    """
    path = known_checkpoint(path)
    if path.is_file() and path.suffix.lower() in ARCHIVES:
        return ImageFolderSource(path, sample_shape)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return SamplesSource(path, num_classes)
    if path.is_file() or (path / f"{RECORD}.json").is_file():
        return ModelSource(load_model(path).sampling_on(device))
    checkpoint = run_checkpoint(path)  # before pictures, which a run's folder has too
    if checkpoint is not None:
        raise CheckpointError(f"{path} is the folder of a run: give its checkpoint, {checkpoint}")
    if (path / "model_index.json").is_file():
        return DiffusersSource(path, num_inference_steps, device)
    if any(file.suffix.lower() in (*IMAGES, *ARCHIVES) for file in path.rglob("*")):
        return ImageFolderSource(path, sample_shape)
    said = what_lies_at(path)
    if said is not None:
        raise CheckpointError(said)
    if path.is_dir():
        found = sorted(child.name for child in path.iterdir())[:5]
        raise CheckpointError(
            f"there is no {path}/model_index.json: expected a file of an exported model or of a diffusers pipeline, or "
            f"images {', '.join(IMAGES)}, got {found or 'an empty folder'}; check the path"
        )
    raise CheckpointError(
        f"no checkpoint at {path}: expected a .ckpt file, or a folder of fdistill export, of a diffusers pipeline or "
        f"of images; check the path, or name one of {', '.join(checkpoints())}"
    )


def _load_pipeline(folder: Path) -> Any:
    read_json(folder / "model_index.json", "the index of a diffusers pipeline")
    from diffusers import DiffusionPipeline  # seconds of imports, which the other sources do without
    from diffusers.utils import logging

    level, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # an error is one line, ours
    logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    except Exception as error:  # its loaders of broken files raise anything
        raise CheckpointError(f"diffusers cannot load {folder}: {_brief(error)}") from error
    finally:
        logging.set_verbosity(level)
        if shows_bar:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _own_shape(images: Images) -> tuple[int, int, int]:
    """The first one's square, in colour where any image is."""
    channels, height, width = images.shape(0)
    return max((images.shape(i)[0] for i in range(len(images)) if channels == 1), default=3), height, width


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

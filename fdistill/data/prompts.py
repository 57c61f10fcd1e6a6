"""Encoded prompts as training data: alone, or as the captions of encoded images; no text encoder is loaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fdistill.data.batches import Batch, InMemorySplit, Split
from fdistill.data.latent_files import LatentFiles
from fdistill.data.latent_folder import LatentFolder, LatentSplit
from fdistill.data.latents_only import LatentsOnly, NoSamples
from fdistill.data.prompt_encoders import encoder_identity
from fdistill.data.prompt_files import PromptFiles
from fdistill.models.condition import Condition, Takes

_READ_AT_ONCE = 256  # prompts


class _PromptConditions:
    """What data whose conditions are encoded prompts tells of them."""

    @property
    def files(self) -> PromptFiles:
        """The prompts, opened on first use."""
        raise NotImplementedError

    @property
    def takes(self) -> Takes:
        """What the encoders give."""
        return self.files.takes

    def null(self) -> Condition:
        """The condition of one sample that means "no prompt"."""
        return self.files.null()

    def named_conditions(self, most: int) -> tuple[Condition, list[str]]:
        """Up to `most` prompts, evenly over all, as conditions and as texts."""
        chosen = torch.linspace(0, len(self.files) - 1, min(most, len(self.files))).round().long().tolist()
        return self.files.condition(chosen), self.files.texts(chosen)

    def prompts_in_parts(self) -> Iterator[tuple[Condition, list[str]]]:
        """Yield all prompts as conditions and as texts."""
        for part in torch.arange(len(self.files)).split(_READ_AT_ONCE):
            yield self.files.condition(part.tolist()), self.files.texts(part.tolist())


class Prompts(_PromptConditions, LatentsOnly):
    """Prompts that ``fdistill encode-prompts`` wrote, and no images: to distil with objectives that need no real data.

    Batches are as those of `LatentsOnly`, with a prompt's embedding as the condition of each sample. A batch is read
    from the files when it is fetched; memory holds 24 bytes a prompt beside it. ::

        trainer:
          limit_val_batches: 0
        data:
          class_path: Prompts
          init_args:
            folder: prompts
            sample_shape: [4, 64, 64]

    Args:
        folder: Folder that ``fdistill encode-prompts`` wrote.
        sample_shape: Shape of one sample of the teacher, each size >= 1.
        batch_size: Latents per batch and rank, >= 1.
        seed: Seed of the order of the prompts, >= 0.
        num_workers: Processes that fetch batches, >= 0.
        pipeline: Folder of the teacher's pipeline; prompts of other text encoders than its are refused.

    Raises:
        ValueError: An argument is out of its range; or, on first use, the folder holds no whole prompts, or those of
            another encoder.
    """

    def __init__(
        self,
        folder: str,
        sample_shape: list[int],
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
        pipeline: str | None = None,
    ) -> None:
        super().__init__(sample_shape, 0, batch_size, seed, num_workers)
        self.folder, self.pipeline = str(folder), pipeline
        self._files: PromptFiles | None = None

    @property
    def files(self) -> PromptFiles:
        """The prompts, opened on first use."""
        if self._files is None:
            self._files = checked_prompts(self.folder, self.pipeline)
        return self._files

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return all prompts, twice."""
        split = _PromptSplit(self.sample_shape, self.files)
        return split, split


class _PromptSplit(NoSamples):
    """Prompts beside NaN samples that take no memory."""

    def __init__(self, sample_shape: tuple[int, ...], files: PromptFiles) -> None:
        super().__init__(sample_shape, torch.zeros((), dtype=torch.int64).expand(len(files)))
        self.files = files

    def __getitems__(self, indices: Tensor | Sequence[int]) -> Batch:
        index = torch.as_tensor(indices, dtype=torch.long)
        return Batch(self.x[index], self.labels[index], self.files.condition(index.tolist()))


class PromptedLatents(_PromptConditions, LatentFolder):
    """Latents of images that ``fdistill encode`` wrote, with the captions that ``fdistill encode-prompts`` wrote.

    Caption i is that of image i. Both commands take the same folder of images, with a text file beside each image; or
    the prompts are a file of as many lines as there are images, in the order of the images' sorted names.

    Args:
        folder: Folder that ``fdistill encode`` wrote.
        prompts: Folder that ``fdistill encode-prompts`` wrote.
        sample, held_out_fraction, batch_size, split_seed, seed, num_workers, metric_samples: as of `LatentFolder`.
        pipeline: Folder of the teacher's pipeline; prompts of other text encoders than its are refused.

    Raises:
        ValueError: An argument is out of its range; or, on first use, the folders do not fit.
    """

    def __init__(
        self,
        folder: str,
        prompts: str,
        sample: bool = True,
        held_out_fraction: float = 0.1,
        batch_size: int = 128,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        metric_samples: int = 10_000,
        pipeline: str | None = None,
    ) -> None:
        super().__init__(folder, sample, held_out_fraction, batch_size, split_seed, seed, num_workers, metric_samples)
        self.prompts, self.pipeline = str(prompts), pipeline
        self._prompt_files: PromptFiles | None = None

    @property
    def files(self) -> PromptFiles:
        """The captions, opened on first use."""
        if self._prompt_files is None:
            files, images = checked_prompts(self.prompts, self.pipeline), len(self._read_files())
            if len(files) != images:
                raise ValueError(
                    f"there is a caption for each image: expected {images:,} prompts in {self.prompts}, as latents in "
                    f"{self.folder}, got {len(files):,}"
                )
            self._prompt_files = files
        return self._prompt_files

    def _split(self, files: LatentFiles, chosen: Tensor, flips: bool) -> Split:
        return _CaptionedLatents(files, chosen, flips, self.sample, self.seed, self.metric_samples, self.files)


class _CaptionedLatents(LatentSplit):
    """Latents whose condition is the caption of their image."""

    def __init__(
        self,
        files: LatentFiles,
        chosen: Tensor,
        flips: bool,
        sample: bool,
        seed: int,
        metric_samples: int,
        prompts: PromptFiles,
    ) -> None:
        super().__init__(files, chosen, flips, sample, seed, metric_samples)
        self.prompts = prompts

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        found = super().__getitems__(indices)
        images = self.chosen[torch.as_tensor(indices) % len(self) % len(self.labels)]
        return found._replace(condition=self.prompts.condition(images.tolist()))


def checked_prompts(folder: str, pipeline: str | None) -> PromptFiles:
    """The prompts of a folder.

    Raises:
        ValueError: where they are of other text encoders than the pipeline's.
    """
    files = PromptFiles(Path(folder))
    if pipeline is not None and encoder_identity(Path(pipeline)) != files.description.encoder:
        raise ValueError(
            f"prompts are encoded by the teacher's own text encoders: {folder} was made by others than those of "
            f"{pipeline}; run fdistill encode-prompts with --pipeline {pipeline}"
        )
    return files

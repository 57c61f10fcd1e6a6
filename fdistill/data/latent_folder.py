"""Latents that were encoded once, read from memory-mapped files: a latent model trains without its VAE."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.random import generator_for
from fdistill.core.weight_files import CheckpointError
from fdistill.data.base import GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit, ReadSplit, Split
from fdistill.data.image_folder import held_out_part
from fdistill.data.latent_files import DECODER, LatentFiles
from fdistill.models.condition import Condition
from fdistill.models.vae import Decoder

_DECODED_AT_ONCE = 16
_PROGRESS_BAR_FROM = 20  # of these


class LatentFolder(GenerativeDataModule):
    """What ``fdistill encode`` wrote: latents as a model sees them, of the scale that their VAE undoes.

    An AutoencoderKL gives a mean and a standard deviation; each epoch draws every latent anew, a function of the seed,
    the epoch and the image alone. Mirror images that were encoded are as many further samples. The held-out split is
    that of `ImageFolder` on the same images. People and metrics see the images that the VAE beside them decodes.

    Args:
        folder: Folder that ``fdistill encode`` wrote.
        sample: Draw latents from their posteriors; their means otherwise.
        held_out_fraction: Part of the images that is held out, in (0, 1); at least one image is.
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Chooses the held-out images, >= 0.
        seed: Seed of the order of the training stream and of the draws, >= 0.
        num_workers: Processes that fetch batches, >= 0.
        metric_samples: Latents of each split that metrics read, decoded; >= 1.

    Raises:
        ValueError: An argument is out of its range; or, on first use of the data, the folder holds no whole latents.
    """

    def __init__(
        self,
        folder: str,
        sample: bool = True,
        held_out_fraction: float = 0.1,
        batch_size: int = 128,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        metric_samples: int = 10_000,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(0, split_seed=split_seed)
        require_at_least(1, metric_samples=metric_samples)
        if not 0 < held_out_fraction < 1:
            raise ValueError(f"held_out_fraction is a part: expected (0, 1), got {held_out_fraction}; 0.1 is usual")
        self.folder, self.sample, self.held_out_fraction = str(folder), sample, held_out_fraction
        self.split_seed, self.metric_samples = split_seed, metric_samples
        self._files: LatentFiles | None = None
        self._decoder: Decoder | None = None
        self._pixels: DecodedLatents | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one latent, (C, h, w)."""
        return tuple(self._read_files().description.sample_shape)

    @property
    def num_classes(self) -> int:
        """Number of classes of the images, 0 without."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Sorted names of the classes; the label is the position in this list."""
        return self._read_files().description.class_names

    @property
    def decoder(self) -> Decoder | None:
        """The VAE that made the latents, one for all who ask: its weights are read once."""
        if self._decoder is None:
            self._decoder = Decoder(Path(self.folder) / DECODER)
        return self._decoder

    def in_pixels(self, device: torch.device | str = "cpu") -> "DecodedLatents":
        """Return the images that the VAE makes of the latents that metrics read; decoded once, on the last device."""
        if self._pixels is None:
            wanted = inspect.signature(DecodedLatents).parameters
            self._pixels = DecodedLatents(**{name: getattr(self, name) for name in wanted})
            self._pixels.latents = self
        return self._pixels.on(device)

    def load_splits(self) -> tuple[Split, Split]:
        """Split the latents; none is read yet."""
        files = self._read_files()
        train, held_out = held_out_part(files.labels, self.held_out_fraction, self.split_seed, self.folder)
        return self._split(files, train, files.description.flips), self._split(files, held_out, False)

    def _split(self, files: LatentFiles, chosen: Tensor, flips: bool) -> Split:
        return LatentSplit(files, chosen, flips, self.sample, self.seed, self.metric_samples)

    def _read_files(self) -> LatentFiles:
        if self._files is None:
            self._files = LatentFiles(Path(self.folder))
        return self._files


class DecodedLatents(LatentFolder):
    """Images of those latents of a `LatentFolder` that metrics read, as 8-bit pixels in memory; with its arguments."""

    latents: LatentFolder | None = None
    """What they are images of, which may know prompts."""
    _device: torch.device | str = "cpu"

    def on(self, device: torch.device | str) -> "DecodedLatents":
        """Where to decode."""
        self._device = device
        return self

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one image, (C, H, W)."""
        return self._loaded()[0].sample_shape

    @property
    def decoder(self) -> None:
        """None: they are images."""
        return None

    def in_pixels(self, device: torch.device | str = "cpu") -> "DecodedLatents":
        return self

    def named_conditions(self, most: int) -> tuple[Condition, list[str]]:
        """Those of the latents."""
        return super().named_conditions(most) if self.latents is None else self.latents.named_conditions(most)

    def prompts_in_parts(self) -> Iterator[tuple[Condition, list[str]]]:
        """Those of the latents."""
        return super().prompts_in_parts() if self.latents is None else self.latents.prompts_in_parts()

    def load_splits(self) -> tuple[Split, Split]:
        """Decode those latents of both splits."""
        decoder = Decoder(Path(self.folder) / DECODER).to(self._device)
        train, held_out = super().load_splits()
        return _decoded(train.measured(), decoder), _decoded(held_out.measured(), decoder)


class LatentSplit(ReadSplit):
    """Those of the latents with the numbers `chosen`, and after them the mirror image of each."""

    def __init__(
        self, files: LatentFiles, chosen: Tensor, flips: bool, sample: bool, seed: int, metric_samples: int
    ) -> None:
        super().__init__(files.labels[chosen], flips, metric_samples)
        self.files, self.chosen, self.seed = files, chosen, seed
        self.drawn_anew = sample and files.description.posterior

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.files.description.sample_shape)

    def read(self, indices: Sequence[int]) -> Tensor:
        x = torch.empty((len(indices), *self.sample_shape))
        for place, index in enumerate(indices):
            time, index = divmod(index, len(self))
            flipped, number = divmod(index, len(self.labels))
            image = int(self.chosen[number])
            mean, std = self.files.read(image, bool(flipped))
            if self.drawn_anew and std is not None:
                draw = generator_for(self.seed if time else 0, time, image, flipped)  # time 0: the same for every seed
                mean = torch.addcmul(mean, std, torch.randn(self.sample_shape, generator=draw))
            x[place] = mean
        if not x.sum().isfinite():  # much less time than asking each number
            raise CheckpointError(f"{self.files.folder} holds latents that are not finite: encode them again")
        return x


def _decoded(latents: InMemorySplit, decoder: Decoder) -> InMemorySplit:
    """The images of latents, rounded as pixels of a file are."""
    count = -(-len(latents) // _DECODED_AT_ONCE)
    parts = tqdm(
        latents.batches(_DECODED_AT_ONCE), "decoding latents", count, False, disable=count < _PROGRESS_BAR_FROM
    )
    return InMemorySplit(torch.cat([_as_pixels(decoder(part.x)) for part in parts]), latents.labels)


def _as_pixels(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

"""The contract of all data: an endless, resumable training stream, a held-out split, and a recipe to rebuild both."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from fdistill.core.private_apis import divides_data
from fdistill.core.random import generator_for
from fdistill.core.spec import build, plain, public_path
from fdistill.data.batch_stream import EndlessBatchSampler
from fdistill.data.batches import Batch, InMemorySplit, Split
from fdistill.models.condition import Condition, Takes, takes_classes
from fdistill.models.networks import Network
from fdistill.models.vae import Decoder

__all__ = ["Batch", "GenerativeDataModule"]


class GenerativeDataModule(L.LightningDataModule, ABC):
    """Samples of a distribution, split into a training and a held-out part.

    A subclass gives ``sample_shape``, ``num_classes`` and ``load_splits``, and keeps every argument of its ``__init__``
    as an attribute of the same name: ``spec`` reads them there.

    Training batch i of rank r is a pure function of (seed, i, r, number of ranks): see ``EndlessBatchSampler``. A run
    that is resumed sees the batches that an uninterrupted run would have seen. Train with
    ``Trainer(use_distributed_sampler=False)``: the ranks' parts are made here.

    Args:
        batch_size: Samples per batch and rank, >= 1.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0; 0 is fastest for small samples.

    Raises:
        ValueError: An argument is out of its range.
    """

    allow_zero_length_dataloader_with_multiple_devices = (
        True  # a held-out split may be smaller than the number of ranks
    )

    has_real: bool = True
    """Whether there are samples; where not, a batch holds NaN beside its condition, and there are no splits."""

    def __init__(self, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, seed=seed, num_workers=num_workers)
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self._splits: tuple[Split, Split] | None = None
        self._data_std: float | None = None
        self._resume_at: int | None = None  # loaded position that no stream has taken up yet
        self._shift = 0  # position of the stream minus the trainer's count; 0 in every run that the trainer resumed

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, e.g. (1, 8, 8)."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes or modes; 0 where the data is unlabelled."""

    @abstractmethod
    def load_splits(self) -> tuple[Split, Split]:
        """Return the training and the held-out split; called once, on first use."""

    @property
    def takes(self) -> Takes:
        """What a network of this data takes as its condition: the classes, or what the class numbers stand for."""
        return takes_classes(self.num_classes)

    @property
    def num_modes(self) -> int:
        """Number of modes that samples can be told to belong to: the classes; 0 where the data is unlabelled."""
        return self.num_classes

    def read_modes(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the mode of each sample [n, *sample_shape], int64 [n] in [0, num_modes), -1 for a sample of none.

        None where the data has no rule of its own, as in a set of photographs.
        """
        return None

    def exact_network(self) -> Network | None:
        """Return E[x_0 | x_0 + sigma eps] of all classes together, a network for `X0Prediction(VarianceExploding())`.

        None where nobody knows it, as of every set of photographs.
        """
        return None

    @property
    def decoder(self) -> Decoder | None:
        """What makes images of samples that are latents; None where samples are what people look at."""
        return None

    def named_conditions(self, most: int) -> tuple[Condition, list[str]]:
        """Return up to `most` conditions of a network of this data, evenly over all, and what people call them.

        Where there are no classes it is the empty condition alone.
        """
        if not self.num_classes:
            return Condition(), ["all samples"]
        chosen = torch.linspace(0, self.num_classes - 1, min(most, self.num_classes)).round().long()
        return Condition.of_numbers(self.takes, chosen), [f"class {number}" for number in chosen.tolist()]

    def prompts_in_parts(self) -> Iterator[tuple[Condition, list[str]]]:
        """Yield all prompts, some at a time: their conditions and texts; nothing where conditions are no prompts."""
        yield from ()

    def in_pixels(self, device: torch.device | str = "cpu") -> "GenerativeDataModule":
        """Return the data that people and metrics look at: itself, or the images of latents, decoded on a device."""
        return self

    @property
    def train_samples(self) -> InMemorySplit:
        """Training samples, asked for by index; an even part of them where they do not lie in memory (`ReadSplit`)."""
        return self._loaded()[0].measured()

    @property
    def held_out_samples(self) -> InMemorySplit:
        """Held-out samples; as `train_samples`."""
        return self._loaded()[1].measured()

    def data_std(self) -> float:
        """Return the standard deviation over all entries of `train_samples` (EDM's sigma_data)."""
        if self._data_std is None:
            self._data_std = self.train_samples.std()
        return self._data_std

    def spec(self) -> dict[str, Any]:
        """Return ``{class_path: ..., init_args: {...}}`` in plain values, for ``from_spec`` to rebuild the data."""
        init_args = {name: plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}
        return {"class_path": public_path(type(self)), "init_args": init_args}

    @staticmethod
    def from_spec(spec: dict[str, Any]) -> "GenerativeDataModule":
        """Rebuild the data module that ``spec`` describes; imports nothing, so a file cannot run code of its choice.

        Raises:
            ValueError: The spec is malformed, or names no data module that is already imported, or no arguments of it.
        """
        return build(GenerativeDataModule, {"init_args": {}, **spec} if isinstance(spec, dict) else spec)

    def setup(self, stage: str | None = None) -> None:
        """Load the splits (trainer hook)."""
        self._loaded()

    def teardown(self, stage: str | None = None) -> None:
        """Forget the loaded position, so that the next trainer begins at its own count (trainer hook)."""
        self._resume_at, self._shift = None, 0

    def train_dataloader(self) -> DataLoader:
        """Return this rank's endless stream, from the batch after the last one seen."""
        if self._resume_at is not None:
            self._shift, self._resume_at = self._resume_at - self._batches_processed_by_trainer(), None
        split, (rank, world_size) = self._loaded()[0], self._rank_and_world_size()
        size, order = len(split), (self.batch_size, self.seed, rank, world_size, self.batches_seen)
        return self._loader(split, batch_sampler=EndlessBatchSampler(size, *order, split.drawn_anew))

    def val_dataloader(self) -> DataLoader:
        """Return this rank's part of the held-out split: in order, none dropped, none twice."""
        split, (rank, world_size) = self._loaded()[1], self._rank_and_world_size()
        return self._loader(Subset(split, range(rank, len(split), world_size)), batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the same as ``val_dataloader``."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Return the same as ``val_dataloader``."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, and wait for no GPU: Lightning would, for what is no plain tensor."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        later = device.type not in ("cpu", "mps")
        x, classes, condition = batch
        return Batch(
            x.to(device, non_blocking=later),
            classes.to(device, non_blocking=later),
            condition.to(device, non_blocking=later),
        )

    def batches_seen(self) -> int:
        """Return the number of training batches of this run that are done; the one that is just ending counts."""
        return self._batches_processed_by_trainer() + self._shift if self._resume_at is None else self._resume_at

    def state_dict(self) -> dict[str, int]:
        """Return the position of the training stream, and how many samples each split has."""
        return {"batches_seen": self.batches_seen(), **self._counts()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the training stream begin at the saved position.

        Raises:
            ValueError: The state has no position, or is of data with another number of samples.
        """
        seen = state_dict.get("batches_seen")
        if not isinstance(seen, int) or seen < 0:
            raise ValueError(f"a data state holds batches_seen: expected an integer >= 0, got {seen!r}; start afresh")
        now = self._counts()
        if any(state_dict.get(name, count) != count for name, count in now.items()):
            before, found = (", ".join(f"{name} {of[name]:,}" for name in now) for of in (state_dict, now))
            raise ValueError(
                f"a run continues with the data that it began with: expected {before}, got {found}; give that "
                "data back, or begin a new run in another folder"
            )
        self._resume_at = seen

    def _counts(self) -> dict[str, int]:
        return {
            f"{name} samples": len(split) for name, split in zip(("training", "held-out"), self._loaded(), strict=True)
        }

    def _loaded(self) -> tuple[Split, Split]:
        if self._splits is None:
            self._splits = self.load_splits()
            for name, split in zip(("training", "held-out"), self._splits, strict=True):
                _check_split(name, split, self.sample_shape, self.num_classes)
                split.takes = self.takes
        return self._splits

    def _loader(self, split: Dataset[Batch], **batching: Any) -> DataLoader:
        return DataLoader(
            split,
            num_workers=self.num_workers,
            collate_fn=_already_a_batch,
            pin_memory=torch.cuda.is_available(),
            generator=generator_for(self.seed),  # without one, every iteration draws from the global generator
            **batching,
        )

    def _batches_processed_by_trainer(self) -> int:
        # "processed" already counts a batch in on_train_batch_end, where checkpoints are saved; "completed" does not
        if self.trainer is None:
            return 0
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return seen.processed  # type: ignore[attr-defined]  # Lightning declares the tracker's base class

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        if self.trainer.world_size > 1 and divides_data(self.trainer):
            raise ValueError(
                "the data module gives each rank its own part, which the trainer would divide again: expected"
                " use_distributed_sampler=False, got True; pass False to the Trainer"
            )
        return self.trainer.global_rank, self.trainer.world_size


def require_at_least(minimum: int, **values: int) -> None:
    """Raise ValueError for the first of the named values that is below the minimum."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(
                f"{name} is out of range: expected {name} >= {minimum}, got {value}; use {minimum} or more"
            )


def _check_split(name: str, split: Split, sample_shape: tuple[int, ...], num_classes: int) -> None:
    shape, lowest, highest = split.sample_shape, int(split.labels.min()), int(split.labels.max())
    if shape != tuple(sample_shape):
        raise ValueError(
            f"samples have sample_shape: expected {tuple(sample_shape)}, got {shape} in the {name} split; correct one"
        )
    if lowest < 0 or highest >= max(num_classes, 1):
        raise ValueError(
            f"labels index num_classes = {num_classes} classes: expected [0, {max(num_classes, 1)}), got"
            f" {lowest} to {highest} in the {name} split; correct load_splits"
        )


def _already_a_batch(batch: Any) -> Any:
    return batch


def require_data(data: object) -> GenerativeDataModule:
    """`data`, if it is a data module; raises ValueError for a path, say."""
    if not isinstance(data, GenerativeDataModule):
        raise ValueError(f"data is one of fdistill.data, as ImageFolder('pictures', 32): got {data!r}")
    return data


def remembered_data(facts: Mapping[str, Any], **changes: Any) -> GenerativeDataModule:
    """The data that a model with these facts was trained on.

    Args:
        facts: of the model.
        changes: arguments of the data in place of those that it had.

    Raises:
        ValueError: where they do not say.
    """
    spec = facts.get("data")
    if spec is None:
        raise ValueError("this model does not say what data it was trained on: give --data FILE.yaml")
    return GenerativeDataModule.from_spec({**spec, "init_args": {**spec.get("init_args", {}), **changes}})

"""What every feature extractor shares: fitted once to real training samples, then samples in, scaled features out."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fdistill.core.random import generator_for
from fdistill.core.spec import Described
from fdistill.data.batches import InMemorySplit
from fdistill.evaluation.features.cache import FeatureCache, user_cache

PROGRESS_BAR_FROM = 20  # batches; fewer are through before a bar is worth its line
MOST_REAL = 50_000  # training samples that shift and scale are taken from, and that copies are looked for among


class FeatureExtractor(nn.Module, Described, ABC):
    """Samples [n, *shape] (images in [-1, 1], or points) to features [n, d], shifted and divided by one number.

    The shift and the scale are those for which the real training samples have mean 0 and mean variance 1. One scale for
    all features keeps their proportions and makes distances of different extractors comparable; the centring is what
    the cosine Vendi score needs. A Fréchet distance times scale^2 is the one in the raw features, which is what the
    literature calls FID where they are Inception's.

    A subclass gives `what` and `raw_features`, and `fit` where it has something to learn; `learned` and `fit_again` too
    where that takes long. Everything happens on the extractor's own device, in evaluation mode and without gradient.

    Attributes:
        mean: of the real training samples' raw features [d]; a number before `prepare`.
        scale: root of the mean variance of those.
    """

    batch_size = 1024
    """Samples in `raw_features` at once where nothing else is said."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(()), persistent=False)  # fitted again from the data, never loaded
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self._sample_shape: tuple[int, ...] | None = None
        self._cache: FeatureCache | None = None
        self._keeps_features = False

    def keep_in(self, folder: str | Path | None) -> Self:
        """Keep what real samples give in a folder, and read it there at the next start; None for nowhere.

        Raises:
            OSError: where the folder cannot be made.
        """
        self._cache = None if folder is None else FeatureCache(folder)
        self._keeps_features = True
        return self

    def keep_learned(self) -> Self:
        """Keep what `fit` learns, and what `kept` is asked for, in the user's cache; no features of real samples.

        That is what a report does where nobody chose a folder.

        Where that cannot be written there is a warning, and everything is learned anew at each start.
        """
        try:
            self.keep_in(user_cache())
        except OSError as error:
            warnings.warn(f"learned features are not kept: {error}; set XDG_CACHE_HOME to a folder", stacklevel=2)
        self._keeps_features = False
        return self

    @property
    @abstractmethod
    def what(self) -> str:
        """The raw features in a few words; asked for only once they are prepared."""

    @abstractmethod
    def raw_features(self, x: Tensor) -> Tensor:
        """The features [b, d] of one batch [b, *shape], float32 on the extractor's device, before shift and scale."""

    def fit(self, x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        """Learn from real training samples what `raw_features` needs; does nothing where that is nothing.

        Raises:
            ValueError: if these samples are not of the kind that the extractor reads.
        """

    def learned(self) -> dict[str, Tensor]:
        """What `fit` learned, for `fit_again`; nothing where it learns nothing, or learns fast."""
        return {}

    def fit_again(
        self, learned: Mapping[str, Tensor], x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int
    ) -> None:
        """What `fit` with the same arguments did, whose `learned` this is."""
        self.fit(x, labels, num_classes, seed)

    def classify(self, features: Tensor) -> Tensor | None:
        """The class int64 [n] that the extractor reads from its own `features` [n, d]; None where it has no classes."""
        return None

    @property
    def name(self) -> str:
        """A sentence for the report that says what the features are."""
        self._require_prepared()
        return f"{self.what}, scaled to unit mean variance on the training set"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the samples it was prepared for."""
        return self._require_prepared()

    @torch.no_grad()
    def prepare(self, x: Tensor | InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        """Fit everything to real training samples; the same arguments give the same features, bit for bit on a CPU.

        Args:
            x: real training samples [N, *shape], images in [-1, 1]; a split, `data.train_samples`, is read a batch at
                a time.
            labels: their classes int64 [N] in [0, num_classes), or None.
            num_classes: number of classes; 0 or None for unlabelled samples.
            seed: of whatever is trained here; the global random state is left alone.

        Raises:
            ValueError: for fewer than two samples, a NaN, samples whose features are all equal, or samples that this
                extractor does not read.
        """
        x = x if isinstance(x, InMemorySplit) else _as_split(x, labels)
        if len(x) < 2:
            raise ValueError(f"a feature space needs real samples [N, ...] with N >= 2, got N = {len(x)}")
        self._sample_shape = None  # what fails below leaves nothing half prepared
        fitted = (x, labels, num_classes, seed)
        inputs = {"x": x.x, "labels": labels}
        cache = self._cache if self._keeps_fitted() else None
        key = None if cache is None else cache.key("fitted", self, inputs, *fitted[2:])
        kept = None if cache is None or key is None else cache.read(key)
        if kept is None:
            self.fit(*fitted)
            kept = dict(zip(("mean", "scale"), self._moments(x), strict=True)) | self.learned()
            if not kept["scale"] > 0:
                raise ValueError(
                    f"a feature space needs samples that differ: got {len(x)} of equal features; check them"
                )
            if cache is not None and key is not None:
                cache.write(key, kept)
        else:
            self.fit_again({name: kept[name] for name in kept.keys() - {"mean", "scale"}}, *fitted)
        self.mean, self.scale = (kept[name].float().to(self.device) for name in ("mean", "scale"))
        self._sample_shape = x.sample_shape

    @torch.no_grad()
    def extract(
        self,
        x: Tensor | InMemorySplit,
        batch_size: int | None = None,
        keep: bool = False,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The features [n, d] of samples [n, *shape], float32 on the extractor's device.

        Args:
            x: samples; a split is read a batch at a time.
            batch_size: of them at once.
            keep: they are real ones, whose features are kept where `keep_in` named a folder.
            rows: indices of those of a split that are read, int64 [n]; all, where not given.

        Raises:
            ValueError: before `prepare`, for samples of another shape than it saw, none at all, or a NaN.
        """
        shape = self._require_prepared()
        values = x if isinstance(x, Tensor) else x.x
        if tuple(values.shape[1:]) != shape or len(x) == 0:
            raise ValueError(
                f"samples have the shape of the training set: expected [n, {', '.join(map(str, shape))}] "
                f"with n >= 1, got {list(values.shape)}"
            )
        if isinstance(x, Tensor):
            _require_finite(x)  # a split has looked
        inputs = {"x": values, "rows": rows}
        cache = self._cache if keep and self._keeps_features else None
        key = None if cache is None else cache.key("features", self, inputs, batch_size)
        kept = None if cache is None or key is None else cache.read(key)
        if kept is not None:
            return kept["features"].to(self.device)
        features = torch.cat([(raw - self.mean) / self.scale for raw in self._batches(x, batch_size, rows)])
        if cache is not None and key is not None:
            cache.write(key, {"features": features})
        return features

    def kept(self, what: str, inputs: Any, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What `make` computes with these features, or what it gave before where `keep_in` or `keep_learned` keeps it.

        Where it cannot be told from others there is a warning, and it is computed anew.

        Args:
            what: kind of it.
            inputs: all that it depends on beside this extractor, of the kinds that `plain_form` takes.
            make: gives tensors by name.
        """
        if self._cache is None:
            return make()
        try:
            key = self._cache.key(what, self, {}, inputs)
        except ValueError as error:
            warnings.warn(f"the {what} is not kept: {error}", stacklevel=2)
            return make()
        kept = self._cache.read(key)
        if kept is None:
            kept = dict(make())
            self._cache.write(key, kept)
        return kept

    @property
    def device(self) -> torch.device:
        """Where features are made: that of the extractor's own tensors."""
        return self.mean.device

    def _batches(
        self, x: Tensor | InMemorySplit, batch_size: int | None = None, rows: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Raw features of one batch after the other."""
        self.eval()  # a parent module in training mode may have switched it
        parts = (torch.arange(len(x)) if rows is None else rows).split(batch_size or self.batch_size)
        for part in tqdm(parts, desc="features", unit="batch", leave=False, disable=len(parts) < PROGRESS_BAR_FROM):
            batch = x[part.to(x.device)] if isinstance(x, Tensor) else x.rows(part).x
            yield self.raw_features(batch.float().to(self.device))

    def _moments(self, x: InMemorySplit) -> tuple[Tensor, Tensor]:
        """Mean [d] and root mean variance of the raw features, summed in float64 about the first sample's."""
        origin: Any = None
        total = squares = torch.zeros((), dtype=torch.float64)
        rows = compared_rows(x)
        for raw in self._batches(x, rows=rows):
            raw = raw.cpu().double()  # not every device has float64
            origin = raw[0] if origin is None else origin
            total, squares = total + (raw - origin).sum(0), squares + (raw - origin).square().sum(0)
        variance = (squares - total.square() / len(rows)) / (len(rows) - 1)
        return origin + total / len(rows), variance.mean().clamp(min=0).sqrt()

    def _keeps_fitted(self) -> bool:
        """Where features are not kept, a mean and a scale alone are not worth a file."""
        learns = type(self).learned is not FeatureExtractor.learned
        return self._cache is not None and (self._keeps_features or learns)

    def _require_prepared(self) -> tuple[int, ...]:
        if self._sample_shape is None:
            raise ValueError(
                f"{type(self).__name__} is fitted to real samples first: call prepare(x, labels, num_classes, seed)"
            )
        return self._sample_shape


def compared_rows(train: InMemorySplit) -> Tensor:
    """Indices [m] of the training samples that features are scaled by and copies looked for among, m <= 50,000.

    All, or so many chosen at random; the choice depends on their number alone.
    """
    if len(train) <= MOST_REAL:
        return torch.arange(len(train))
    return torch.randperm(len(train), generator=generator_for(0))[:MOST_REAL].sort().values


def _as_split(x: Tensor, labels: Tensor | None) -> InMemorySplit:
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"a feature space needs real samples [N, ...] with N >= 2, got {list(x.shape)}")
    _require_finite(x)
    return InMemorySplit(x, torch.zeros(len(x), dtype=torch.int64) if labels is None else labels)


def _require_finite(x: Tensor) -> None:
    broken = int((~x.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise ValueError(
            f"samples hold finite numbers: expected 0 broken ones, got {broken} of {len(x)}; "
            "look for the NaN where they are made"
        )

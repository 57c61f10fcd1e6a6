"""FID, KID, Inception score, CLIP score and FD-DINOv2 of sources; samples are streamed and never held together."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.random import fold_seed, generator_for
from fdistill.evaluation.fid.networks import StandardNetwork
from fdistill.evaluation.fid.reference import AT_ONCE, Reference, Statistics, to_pixels
from fdistill.evaluation.fid.scores import SPLITS, ClipScore, InceptionScore, kid
from fdistill.evaluation.metrics.frechet_distance import Moments, moments
from fdistill.evaluation.sample_files import FixedSet
from fdistill.evaluation.sources import Source

PIXELS = "rounded to 8-bit pixels in [0, 255], as PNG files hold them; grey repeated in three channels"
DISTANCES = {"inception": "fid", "dinov2": "fd_dinov2"}
"""What the Frechet distance of a network's features is called."""


class Measured(NamedTuple):
    """What a report holds of the standard metrics."""

    rows: dict[str, dict[str, float]]  # numbers by source
    setup: dict[str, Any]  # how they were made, plain values
    statistics: dict[str, Statistics]  # by the name of the file beside the report that is to hold them


class FidSuite:
    """The standard metrics of sources against one reference.

    Features are the networks' own, neither shifted nor scaled. Moments are summed in float64 as samples come; the
    features that KID needs (8 KB a sample) lie in temporary files.

    Args:
        networks: what to measure with.
        reference: what to compare with.
        n: samples of each source, >= 10 (the Inception score's splits); a fixed set gives all where it has fewer.
        seed: of the samples.
        sample_shape: of all sources, (C, H, W).

    Raises:
        ValueError: in one line, where n is too small, a network reads no such samples, or the reference does not fit.
    """

    def __init__(
        self,
        networks: Sequence[StandardNetwork],
        reference: Reference,
        n: int,
        seed: int,
        sample_shape: Sequence[int],
    ) -> None:
        if n < SPLITS:
            raise ValueError(f"fid_samples of each source: expected >= {SPLITS}, got {n}; 50000 is usual")
        self._networks, self._reference, self._n, self._seed = networks, reference, n, seed
        self._widths = {}
        for network in networks:
            network.check(sample_shape)
            blank = torch.zeros(1, *sample_shape, dtype=torch.uint8)
            self._widths[network.name] = network.features(blank).shape[1]
            if network.name in DISTANCES:
                reference.check(network.name, network.fingerprint, self._widths[network.name])

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raise ValueError where a source cannot be measured."""
        for name, source in sources.items():
            if self._count(source) < SPLITS:
                raise ValueError(f"the {name} has enough images: expected >= {SPLITS}, got {self._count(source)}")
            if source.num_classes == 0 and "clip" in self._widths:
                raise ValueError(f"a CLIP score needs prompts: the {name} makes no classes; leave --clip out")

    def measure(self, sources: Mapping[str, Source]) -> Measured:
        """Measure all.

        Raises:
            ValueError: as `check`.
        """
        self.check(sources)
        real, facts = self._read_reference()
        readings = {"reference": real}
        rows: dict[str, dict[str, float]] = {name: {} for name in sources}
        for name, source in sources.items():
            readings[name] = self._read(name, source)
            for key, reading in readings[name].items():
                rows[name] |= reading.numbers(real.get(key))
                reading.features = None  # the disk's space is free again
        described = {network.name: network.described() for network in self._networks}
        statistics: dict[str, Statistics] = {}
        for key, entry in described.items():
            if key in DISTANCES:
                entry["statistics"] = {name: f"fid_{key}_{name}.npz" for name in readings}
                statistics |= {file: readings[name][key].statistics for name, file in entry["statistics"].items()}
                entry["reference_count"] = real[key].statistics.count
                entry["reference_fingerprint"] = real[key].statistics.fingerprint()
        setup = {
            "samples": {name: self._count(source) for name, source in sources.items()},
            "seed": self._seed,
            "pixels": PIXELS,
            "reference": facts,
            "networks": described,
            "notes": self._notes(sources, real),
        }
        return Measured(rows, setup, statistics)

    def _read_reference(self) -> tuple[dict[str, "_Reading"], dict[str, Any]]:
        """What the networks read of the reference, published statistics before those of its images; and facts."""
        networks = [network for network in self._networks if network.name in DISTANCES]
        published = {network.name: self._reference.of(network.name) for network in networks}
        facts: dict[str, Any] = {"what": self._reference.what}
        reading = {network.name: _Reading(network, self._reference.count) for network in networks}
        wanted = [network.name for network in networks if network.name == "inception" or not published[network.name]]
        if self._reference.images is not None and wanted:
            digest = hashlib.sha256()
            for pixels in _with_bar(self._reference.images(), self._reference.count, "reference"):
                digest.update(pixels.contiguous().numpy())
                for name in wanted:
                    reading[name].add(pixels, None)
            facts |= {"images": self._reference.count, "sha256_of_pixels": digest.hexdigest()[:16]}
        for name, statistics in published.items():
            reading[name].published = statistics
        return reading, facts

    def _read(self, name: str, source: Source) -> dict[str, "_Reading"]:
        count = self._count(source)
        readings = {network.name: _Reading(network, count) for network in self._networks}
        for pixels, labels in _with_bar(self._batches(source), count, name):
            for reading in readings.values():
                reading.add(pixels, labels)
        return readings

    def _batches(self, source: Source) -> Iterator[tuple[Tensor, Tensor | None]]:
        """8-bit pixels [b, C, H, W] and labels: new samples, classes in turn, or those of a fixed set in its order."""
        count = self._count(source)
        if isinstance(source, FixedSet):
            chosen = torch.arange(source.count)
            if count < source.count:
                chosen = torch.randperm(source.count, generator=generator_for(self._seed))[:count].sort().values
            for numbers in chosen.split(AT_ONCE):
                labels = source.class_labels[numbers] if source.num_classes else None
                yield to_pixels(source.read(numbers)), labels
            return
        for i, numbers in enumerate(torch.arange(count).split(AT_ONCE)):
            seed = fold_seed(self._seed, i) % 2**32
            wanted = numbers % source.num_classes if source.num_classes else None
            labels = source.labels(len(numbers), seed, wanted)
            yield to_pixels(source.draw(len(numbers), seed, labels)), labels

    def _count(self, source: Source) -> int:
        return min(self._n, source.count) if isinstance(source, FixedSet) else self._n

    def _notes(self, sources: Mapping[str, Source], real: Mapping[str, "_Reading"]) -> list[str]:
        """What a reader of the numbers has to be told."""
        notes = list(self._reference.notes)
        for name, source in sources.items():
            count = self._count(source)
            if isinstance(source, FixedSet):
                notes.append(f"{name}: a fixed set, {count:,} of its {source.count:,} images")
            notes += [
                f"{name}: the covariance of {self._widths[key]:,} features of {count:,} samples is singular, and the "
                f"{DISTANCES[key]} biased upwards; 50,000 are usual"
                for key in real
                if count <= self._widths[key]
            ]
        if "inception" in real and real["inception"].features is None:
            notes.append("no KID: the reference has no images, and KID needs more than mu and sigma")
        return notes


class _Reading:
    """What one network has read of one set of images.

    Attributes:
        published: statistics that somebody else computed, and that stand for those of the images.
        features: of all images so far [n, d] where KID needs them, in a temporary file; None before the first.
    """

    def __init__(self, network: StandardNetwork, n: int) -> None:
        self.published: Statistics | None = None
        self.features: np.ndarray | None = None
        self._network, self._n, self._seen = network, n, 0
        self._moments: Moments | None = None
        self._score = InceptionScore(n) if network.name == "inception" else None
        self._clip = None
        if network.name == "clip":
            self._clip = ClipScore(cast(Tensor, network.extractor.prompt_embeddings))

    def add(self, pixels: Tensor, labels: Tensor | None) -> None:
        """The next images, and their classes where there are some."""
        features = self._network.features(pixels)
        if self._clip is not None:
            self._clip.add(features, cast(Tensor, labels))  # prompts are of classes
            return
        found = moments(features)
        self._moments = found if self._moments is None else self._moments.merge(found)
        if self._score is not None:
            if self.features is None:
                with tempfile.TemporaryFile() as file:  # the map keeps it
                    self.features = np.memmap(file, np.float32, "w+", shape=(self._n, features.shape[1]))
            self.features[self._seen : self._seen + len(features)] = features.numpy()
            self._score.add(self._network.logits(features))
        self._seen += len(features)

    @property
    def statistics(self) -> Statistics:
        """Published ones, or those of the images."""
        if self.published is not None:
            return self.published
        assert self._moments is not None  # images have been added
        return Statistics.of(self._moments)

    def numbers(self, real: "_Reading | None") -> dict[str, float]:
        """What the report says, given what the same network has read of the reference; the CLIP score needs none."""
        if self._clip is not None:
            return {"clip_score": self._clip.compute()}
        assert real is not None  # every other network reads the reference
        row = {DISTANCES[self._network.name]: self.statistics.distance(real.statistics)}
        if self._score is not None:
            row["inception_score"], row["inception_score_std"] = self._score.compute()
        if self.features is not None and real.features is not None:
            row["kid"], row["kid_std"] = kid(self.features, real.features)
        return row


def _with_bar(batches: Iterable[Any], count: int, name: str) -> Iterator[Any]:
    return tqdm(batches, desc=f"FID: {name}", unit="batch", total=-(-count // AT_ONCE))

"""What generated samples are compared with: images, or means and covariances that somebody published."""

import functools
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fdistill.core.atomic_files import replace_file
from fdistill.core.fingerprints import fingerprint
from fdistill.core.weight_files import CheckpointError, reason
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.metrics import gaussian_frechet_distance
from fdistill.evaluation.metrics.frechet_distance import Moments
from fdistill.evaluation.sample_files import FixedSet
from fdistill.evaluation.sources import open_source

AT_ONCE = 128
"""Images in memory at once."""
LEAST = 3
"""Images that a reference holds, for KID."""
SIGMA_SLACK = 1e-5  # of the largest eigenvalue of a covariance that single precision may have turned negative


@dataclass
class Statistics:
    """Mean and covariance of features.

    Attributes:
        mean: [d], float64.
        covariance: [d, d], float64.
        count: samples that they are of, where known.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    @classmethod
    def of(cls, moments: Moments) -> "Statistics":
        """Those of moments of two samples or more."""
        return cls(moments.mean, moments.covariance, int(moments.count))

    def distance(self, other: "Statistics") -> float:
        """The Frechet distance."""
        return float(gaussian_frechet_distance(self.mean, self.covariance, other.mean, other.covariance))

    def fingerprint(self) -> str:
        """Of both, to the last bit."""
        return fingerprint("statistics", {"mu": self.mean, "sigma": self.covariance})

    def write(self, path: Path) -> Path:
        """Write them as EDM does: an .npz of mu and sigma; and count."""
        with replace_file(path) as file:
            counted: dict[str, Any] = {} if self.count is None else {"count": np.int64(self.count)}
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy(), **counted)
        return path


@dataclass
class Reference:
    """Images, or statistics by network, or both: published files may hold the moments of more images than they hold.

    Attributes:
        what: where it comes from, for the report.
        images: makes an iterator of 8-bit pixels [b, C, H, W], which is at its end after `count` images.
        count: of the images; 0 without.
        statistics: by the name of a network; `ANY` where the file does not say of which.
        weights: fingerprints of the networks that the statistics are of, where known.
        notes: what was there and is not used.
    """

    ANY = "any"

    what: str
    images: Callable[[], Iterator[Tensor]] | None = None
    count: int = 0
    statistics: dict[str, Statistics | None] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, network: str) -> Statistics | None:
        """The statistics of a network, if the reference has some."""
        return self.statistics.get(network, self.statistics.get(self.ANY))

    def check(self, network: str, of_weights: str, width: int) -> None:
        """Raise ValueError where nothing here can be compared with a network's features.

        Args:
            network: its name.
            of_weights: its fingerprint.
            width: number of its features.
        """
        known, made_with = self.of(network), self.weights.get(network, of_weights)
        if self.count < LEAST and (known is None or self.images is not None):
            got = f"statistics of {sorted(self.statistics)}" if self.statistics else f"{self.count} images"
            raise ValueError(
                f"{self.what} has {LEAST} images or more, or statistics of the {network} network: got {got}; give "
                "images, or leave the network out"
            )
        if made_with != of_weights:
            raise ValueError(
                f"{self.what} was made with the same weights of the {network} network: expected fingerprint "
                f"{of_weights}, got {made_with}; give the same file of weights, or another reference"
            )
        if known is not None and len(known.mean) != width:
            raise ValueError(
                f"{self.what} and the {network} network share one feature space: expected mu [{width}], got "
                f"[{len(known.mean)}]; give statistics of the same network, or images"
            )


def open_reference(path: str, sample_shape: Sequence[int]) -> Reference:
    """A reference at a path: an .npz of mu and sigma, or of images arr_0 as ADM's, a report of ours, or images.

    Args:
        path: the .npz; report.json or its folder; what `open_source` takes for a fixed set of images.
        sample_shape: (C, H, W) of what is compared with it.

    Raises:
        ValueError: in one line, if it is none of these, broken, or images of another shape.
    """
    place = Path(path)
    if place.suffix == ".npz":
        return _of_npz(place, sample_shape)
    if place.name == "report.json" or (place / "report.json").is_file():
        return _of_report(place if place.name == "report.json" else place / "report.json", sample_shape)
    source = open_source(place, "cpu", sample_shape)
    if not isinstance(source, FixedSet):
        raise CheckpointError(
            f"a reference is real images, an .npz of mu and sigma, or a report: got the model {path}; name one of these"
        )

    def images() -> Iterator[Tensor]:
        for numbers in torch.arange(source.count).split(AT_ONCE):
            yield to_pixels(source.read(numbers))

    return Reference(f"images of {path}", images, source.count)


def training_reference(data: GenerativeDataModule) -> Reference:
    """The training split as metrics read it."""

    samples = data.train_samples

    def images() -> Iterator[Tensor]:
        for batch in samples.batches(AT_ONCE):
            yield to_pixels(batch.x)

    return Reference(f"training split of {type(data).__name__}", images, len(samples))


def to_pixels(x: Tensor) -> Tensor:
    """Images in [-1, 1] as a PNG file would hold them: rounded to 8 bits, values outside clamped.

    Raises:
        ValueError: if a number is not finite.
    """
    if not x.isfinite().all():
        raise ValueError("samples hold finite numbers: got a NaN or an infinity; look for it where they are made")
    return ((x + 1) * 127.5).round().clamp(0, 255).byte()


def _of_npz(path: Path, sample_shape: Sequence[int]) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            found = {name: file[name] for name in ("mu", "sigma") if name in names}
            count = int(file["count"]) if "count" in names else None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} is no .npz of mu and sigma ({reason(error)}); make or download it again"
        ) from error
    if not ({"mu", "sigma"} <= names or "arr_0" in names):
        raise CheckpointError(
            f"{path} holds mu and sigma, or images arr_0: got {sorted(names)}; write numpy.savez(file, mu=, sigma=)"
        )
    unused = sorted(names - {"mu", "sigma", "count", "arr_0"})
    notes = [f"{path} also holds {', '.join(unused)} (mu_s, sigma_s: of sFID), not used"] if unused else []
    reference = Reference(str(path), notes=notes)
    if {"mu", "sigma"} <= names:
        reference.statistics[Reference.ANY] = _checked(path, found["mu"], found["sigma"], count)
    if "arr_0" in names:
        reference.count = _checked_count(path, sample_shape)
        reference.images = functools.partial(_images_of_npz, path)
    return reference


def _checked_count(path: Path, sample_shape: Sequence[int]) -> int:
    """How many images arr_0 holds, if they are like the samples."""
    channels, *sides = sample_shape
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        shape, fortran, dtype = _header(file)
    if dtype != np.uint8 or fortran or shape[1:] != (*sides, channels):
        raise CheckpointError(
            f"arr_0 of {path} holds 8-bit images like the samples: expected uint8 [N, {', '.join(map(str, sides))}, "
            f"{channels}], got {dtype} {list(shape)}; give a reference of the same size"
        )
    return shape[0]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of an array; the file is left where its numbers begin."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _images_of_npz(path: Path) -> Iterator[Tensor]:
    """A batch after the other, whatever the file holds: it is never read whole."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        (count, *shape), _, _ = _header(file)
        for start in range(0, count, AT_ONCE):
            rows = min(AT_ONCE, count - start)
            pixels = np.frombuffer(bytearray(file.read(rows * math.prod(shape))), np.uint8)
            yield torch.from_numpy(pixels.reshape(rows, *shape)).permute(0, 3, 1, 2)


def _of_report(path: Path, sample_shape: Sequence[int]) -> Reference:
    """The reference of another report."""
    try:
        setup = json.loads(path.read_text())["fid_setup"]
        what = setup["reference"]["what"]
        # CLIP compares with prompts
        networks = {name: said for name, said in setup["networks"].items() if name != "clip"}
        files = {name: path.parent / said["statistics"]["reference"] for name, said in networks.items()}
        weights = {name: said["fingerprint"] for name, said in networks.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is a report of fdistill evaluate --fid: it tells of no reference ({reason(error)}); name a report "
            "that was made with --fid"
        ) from error
    statistics = {name: _of_npz(file, sample_shape).of(name) for name, file in files.items()}
    return Reference(f"{what}, by the report {path}", statistics=statistics, weights=weights)


def _checked(path: Path, mu: np.ndarray, sigma: np.ndarray, count: int | None) -> Statistics:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise CheckpointError(
            f"{path} holds a mean mu [d] and a covariance sigma [d, d]: got {mu.dtype} {list(mu.shape)} and "
            f"{sigma.dtype} {list(sigma.shape)}; make it again"
        )
    mean, covariance = torch.from_numpy(mu).double(), torch.from_numpy(sigma).double()
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise CheckpointError(f"{path} holds finite numbers: got a NaN or an infinity; make it again")
    if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())):
        gap = float((covariance - covariance.T).abs().max())
        raise CheckpointError(f"sigma of {path} is symmetric: got |sigma - sigma^T| up to {gap:.3g}; make it again")
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -SIGMA_SLACK * values[-1].abs():
        raise CheckpointError(
            f"sigma of {path} is a covariance, positive semi-definite: expected no eigenvalue below 0, got "
            f"{values[0]:.3g} beside {values[-1]:.3g}; make it again"
        )
    return Statistics(mean, (covariance + covariance.T) / 2, count)

"""Encoding a folder of images once with a VAE: files of latents that `LatentFolder` trains on."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from fdistill.core.atomic_files import atomic_write, replace_folder
from fdistill.core.fingerprints import fingerprint
from fdistill.core.random import generator_for
from fdistill.data import Batch, ImageFolder
from fdistill.data.image_folder import ImageSplit
from fdistill.data.latent_files import (
    DECODER,
    DESCRIPTION,
    FILE_NAME,
    FLIPPED,
    LABELS,
    MEAN,
    STD,
    LatentDescription,
    LatentFiles,
)
from fdistill.data.resumed_folder import check_begun, held
from fdistill.models.vae import Decoder

FILE_BYTES = 256 * 2**20  # of latents in a file; an interrupted command loses at most one
_NAME = "latents-{:05}.safetensors"
_OURS = re.compile(FILE_NAME.pattern + r"|\.latents.*\.tmp|\.vae\.[0-9a-f]{12}\.(tmp|old)")


class EncodingSettings(NamedTuple):
    """What is encoded, and how.

    Attributes:
        images: their folder.
        vae: that encodes them.
        resolution: of the images, in pixels.
        flips: whether mirror images are encoded too.
        half: whether numbers are stored in 16 bits.
        batch_size: images at once; latents depend on it by rounding.
        num_workers: processes that decode images.
    """

    images: Path
    vae: Decoder
    resolution: int
    flips: bool = False
    half: bool = False
    batch_size: int = 16
    num_workers: int = 0


def encode_folder(settings: EncodingSettings, target: Path, overwrite: bool = False) -> tuple[int, int]:
    """Write the latents of a folder of images, then a copy of the VAE, and last the description.

    What was interrupted goes on with the next file; files of latents are whole or not there.

    Args:
        settings: what to encode, and how.
        target: folder to write into: new, empty, or of latents.
        overwrite: replace whatever latents are there.

    Returns:
        The number of images, and how many of them were encoded now.

    Raises:
        ValueError: where the target holds other things, or the images or the VAE cannot be used.
        OSError: where it cannot be written.
    """
    images, names = _images(settings)
    request = _request(settings, images, names)
    if not overwrite and (target / DESCRIPTION).exists():
        held(target, lambda folder: LatentFiles(folder).description, request, "latents")
        return len(images), 0
    _make_room(target, request, overwrite)
    mean, std = settings.vae.encode(images[0].x[None])
    numbers = mean.numel() * (1 + (std is not None)) * (1 + settings.flips)
    per_file = max(1, FILE_BYTES // (numbers * (2 if settings.half else 4)))
    files, encoded = [], 0
    with tqdm(total=len(images), desc="encoding", unit="image") as bar:
        for number, first in enumerate(range(0, len(images), per_file)):
            path, part = target / _NAME.format(number), range(first, min(first + per_file, len(images)))
            if path.is_file():
                bar.update(len(part))
            else:
                latents = _encoded(settings, _batches(settings, images, part), bar)
                atomic_write(path, save(latents, {"request": request}))
                encoded += len(part)
            files.append({"name": path.name, "images": len(part), "bytes": path.stat().st_size})
    with replace_folder(target / DECODER) as copy:
        settings.vae.save(copy)
    shape = list(mean.shape[1:])
    text = LatentDescription(shape, std is not None, settings.flips, names, files, _made(settings), request)
    atomic_write(target / DESCRIPTION, json.dumps(text._asdict(), indent=1))
    return len(images), encoded


def _images(settings: EncodingSettings) -> tuple[ImageSplit, list[str]]:
    """All images and the names of their classes; what cannot be used is refused before any work."""
    if settings.batch_size < 1:
        raise ValueError(f"batch_size is a number of images at once: expected >= 1, got {settings.batch_size}")
    config, factor = settings.vae.vae.config, settings.vae.factor
    if settings.resolution < 1 or settings.resolution % factor:
        raise ValueError(
            f"this VAE makes one latent pixel of {factor} x {factor}: expected a resolution that {factor} divides, "
            f"got {settings.resolution}"
        )
    data = ImageFolder(
        str(settings.images), settings.resolution, config.in_channels, num_workers=settings.num_workers, in_memory=False
    )
    data.load_splits()
    return data.everything(), data.class_names


def _request(settings: EncodingSettings, images: ImageSplit, names: list[str]) -> str:
    """A fingerprint of all that decides what the files hold; of the images it sees names and sizes."""
    plain = [
        settings.vae.fingerprint,
        settings.resolution,
        settings.flips,
        settings.half,
        settings.batch_size,
        FILE_BYTES,
        names,
    ]
    return fingerprint([*plain, images.files_fingerprint()], {LABELS: images.labels})


def _make_room(target: Path, request: str, overwrite: bool) -> None:
    """Leave nothing but the files of an interrupted command for the same request.

    Raises:
        ValueError: where something else would be lost.
    """
    if not target.exists():
        return
    present = sorted(path.name for path in target.iterdir())
    begun = [name for name in present if _OURS.fullmatch(name)]
    foreign = [name for name in present if name not in (*begun, DESCRIPTION, DECODER)]
    if foreign or (DECODER in present and not begun and DESCRIPTION not in present):
        raise ValueError(f"{target} holds {(foreign or [DECODER])[0]}: latents go to a new folder; name another one")
    left_over = [name for name in begun if name[0] == "."]
    if overwrite:  # the description first: it never tells of files that are gone; what shows that they are ours last
        left_over = [name for name in (DESCRIPTION, DECODER) if name in present] + begun
    for name in left_over:
        shutil.rmtree(target / name) if (target / name).is_dir() else (target / name).unlink()
    check_begun(target, request, "latents")


def _batches(settings: EncodingSettings, images: ImageSplit, part: range) -> Iterable[Batch]:
    return DataLoader(
        Subset(images, part),
        settings.batch_size,
        num_workers=settings.num_workers,
        collate_fn=_as_it_is,
        generator=generator_for(0),  # nothing is drawn, but a loader takes a number from the global one
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _encoded(settings: EncodingSettings, batches: Iterable[Batch], bar: tqdm) -> dict[str, Tensor]:
    """The tensors of one file."""
    parts: dict[str, list[Tensor]] = {}
    for batch in batches:
        parts.setdefault(LABELS, []).append(batch.classes)
        for prefix, x in {"": batch.x, **({FLIPPED: batch.x.flip(-1)} if settings.flips else {})}.items():
            for name, value in zip((MEAN, STD), settings.vae.encode(x), strict=True):
                if value is not None:
                    parts.setdefault(prefix + name, []).append(value.half() if settings.half else value)
        bar.update(len(batch.classes))
    tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ValueError("latents of this VAE do not fit into 16 bits: leave --half out")
    return tensors


def _made(settings: EncodingSettings) -> dict[str, Any]:
    """What people want to know of the latents later."""
    config = settings.vae.vae.config
    scaling = {name: config.get(name) for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")}
    return {
        "images": str(settings.images),
        "resolution": settings.resolution,
        "vae": type(settings.vae.vae).__name__,
        "vae_fingerprint": settings.vae.fingerprint,
        "numbers": "float16" if settings.half else "float32",
        **{name: value for name, value in scaling.items() if value is not None},
    }

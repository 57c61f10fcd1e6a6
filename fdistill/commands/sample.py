"""`fdistill sample`: pictures (or numbers) from a checkpoint or an exported folder."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fdistill.checkpoints import load_model
from fdistill.files import atomic_write
from fdistill.generative_model import GenerativeModel

_GAP = 2  # pixels between the images of a grid
_SMALLEST_CELL = 48  # pixels; smaller images are enlarged by a whole factor


def sample(
    checkpoint: str,
    n: int = 64,
    seed: int = 0,
    out: str = "samples.png",
    labels: list[int] | None = None,
    device: str = "cpu",
) -> None:
    """Generate samples; the same seed gives the pixels of the exported pipeline.

    Args:
        checkpoint: a run's .ckpt file or an exported folder.
        n: number of samples.
        seed: of the noise; the noise is drawn on the CPU whatever the device.
        out: a .png grid, or a .npz file with arrays `samples` [n, ...] and `labels`.
        labels: classes, repeated as needed; all classes in turn where not given.
        device: cpu, cuda, cuda:1 ...
    """
    if n < 1:
        raise ValueError(f"n is a number of samples and positive: got {n}")
    path = Path(out)
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"samples are written as .png or .npz: got {out!r}")
    model = load_model(checkpoint).to(device)
    wanted = _labels(model, n, labels)
    samples = model.sample(model.noise(n, seed), wanted)
    if path.suffix == ".npz":
        atomic_write(path, _npz(samples, wanted))
    elif samples.ndim == 4:
        atomic_write(path, _png(image_grid(samples)))
    else:
        from fdistill.report import sample_grid_figure

        sample_grid_figure({f"{model.kind}, {model.evaluations} evaluations": samples}, path)
    print(f"wrote {n} samples of {model.evaluations} evaluation{'s' * (model.evaluations > 1)} each to {path}")


def _labels(model: GenerativeModel, n: int, given: list[int] | None) -> Tensor | None:
    if not given:
        return model.labels(n)
    if not model.num_classes:
        raise ValueError(f"this model is unconditional and takes no labels: got {given}")
    return torch.tensor(given).repeat(-(-n // len(given)))[:n]


def to_pixels(samples: Tensor) -> np.ndarray:
    """[B, C, H, W] in [-1, 1] to uint8 [B, H, W, C], rounded as diffusers rounds."""
    return ((samples / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def image_grid(samples: Tensor) -> np.ndarray:
    """Near-square grid of images, enlarged by a whole factor, uint8 [H, W, C]; white gaps."""
    pixels = to_pixels(samples)
    factor = max(1, -(-_SMALLEST_CELL // pixels.shape[1]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, channels = pixels.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    grid = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 255, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid


def _png(pixels: np.ndarray) -> bytes:
    if pixels.shape[2] not in (1, 3):
        pixels = pixels[..., :1]
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _npz(samples: Tensor, labels: Tensor | None) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples.numpy(), labels=np.zeros(0) if labels is None else labels.numpy())
    return buffer.getvalue()

"""Samples that are images, as pixels and as one picture."""

import numpy as np
from PIL import Image
from torch import Tensor

_GAP = 2  # pixels between the images of a grid
_SMALLEST_CELL = 48  # pixels; smaller images are enlarged by a whole factor


def show(samples: Tensor) -> Image.Image:
    """One picture of all images in a near-square grid, which a notebook displays and `save` writes.

    Args:
        samples: [n, C, H, W] in [-1, 1]; of C other than 1 or 3 the first channel is shown.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(samples, Tensor) or samples.ndim != 4 or not len(samples):
        got = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"a picture is of images [n, C, H, W]: got {got}; fdistill.sample draws them")
    pixels = image_grid(samples)
    pixels = pixels if pixels.shape[2] in (1, 3) else pixels[..., :1]
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)


def to_pixels(samples: Tensor) -> np.ndarray:
    """[B, C, H, W] in [-1, 1] to uint8 [B, H, W, C], rounded as diffusers rounds."""
    return ((samples / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def image_grid(samples: Tensor) -> np.ndarray:
    """Near-square grid of images, enlarged by a whole factor, uint8 [H, W, C]; white gaps."""
    pixels = to_pixels(samples)
    factor = max(1, -(-_SMALLEST_CELL // pixels.shape[1]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    return tiled(pixels, int(np.ceil(np.sqrt(len(pixels)))), _GAP)


def tiled(pixels: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Images uint8 [n, H, W, C] in rows of `columns`, with white gaps between them."""
    n, height, width, channels = pixels.shape
    rows = -(-n // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid

"""`fdistill sample`: pictures (or numbers) from a checkpoint or an exported folder."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fdistill.cli.commands.checked import require_writable, usable_device
from fdistill.cli.commands.sampling import resampled
from fdistill.core.atomic_files import atomic_write
from fdistill.io.load import load_model
from fdistill.sampling import Sampler
from fdistill.sampling.generator import GenerativeModel, check_labels
from fdistill.sampling.grids import SamplingGrid

_GAP = 2  # pixels between the images of a grid
_SMALLEST_CELL = 48  # pixels; smaller images are enlarged by a whole factor


def sample(
    checkpoint: str,
    n: int = 64,
    seed: int = 0,
    out: str = "samples.png",
    labels: int | list[int] | None = None,
    device: str = "cpu",
    sampler: Sampler | None = None,
    steps: int | None = None,
    grid: SamplingGrid | None = None,
    guidance: float | None = None,
    guidance_interval: list[float] | None = None,
    guide: str | None = None,
) -> None:
    """Generate samples; a seed gives the same ones from the .ckpt, the exported folder and its diffusers pipeline.

    Args:
        checkpoint: a run's .ckpt file, or a folder written by fdistill export.
        n: how many samples.
        seed: seed of the noise, which is drawn on the CPU whatever the device.
        out: file to write: a .png picture of all samples in a grid, or a .npz file of the arrays samples and labels.
        labels: the class to draw, or several like '[0,1,2]', repeated up to n; all classes in turn where not given.
        device: where to compute: cpu, cuda, cuda:1, mps.
        sampler: of a teacher, in place of its own: Heun, Euler, DDIM, GDDIM, PredictorCorrector, Renoising, Restart.
        steps: of a teacher, on EDM's grid between its own first and last noise levels.
        grid: of a teacher, any other noise levels: KarrasGrid, PathGrid, GivenGrid.
        guidance: scale of a teacher's guidance; 1 for none.
        guidance_interval: two noise levels, low and high, between which guidance acts.
        guide: a worse teacher of the same samples, for autoguidance.
    """
    if n < 1:
        raise ValueError(f"n is a number of samples and positive: got {n}")
    path = Path(out)
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"samples are written as .png or .npz: got {out!r}; name the file like that")
    require_writable(path)
    model = resampled(load_model(checkpoint), sampler, steps, grid, guidance, guidance_interval, guide)
    model.sampling_on(usable_device(device))
    wanted = _labels(model, n, labels)
    samples = model.decode(model.sample(model.noise(n, seed), wanted))
    broken = int((~samples.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise ValueError(f"{broken} of {n} samples are not finite: nothing was written; check the weights and the grid")
    if path.suffix == ".npz":
        atomic_write(path, _npz(samples, wanted))
    elif samples.ndim == 4:
        atomic_write(path, _png(image_grid(samples)))
    else:
        from fdistill.evaluation.report import sample_grid_figure

        sample_grid_figure({f"{model.kind}, {model.evaluations} evaluations": samples}, path)
    evaluations = f"{model.evaluations} network evaluation{'s' * (model.evaluations > 1)}"
    print(f"wrote {n} sample{'s' * (n > 1)} of {evaluations} each to {path}")


def _labels(model: GenerativeModel, n: int, given: int | list[int] | None) -> Tensor | None:
    if given is None or given == []:
        return model.labels(n)
    if not model.num_classes:
        raise ValueError(f"this model is unconditional and takes no labels: got {given}; leave --labels out")
    wanted = torch.tensor(given).reshape(-1)
    return check_labels(wanted.repeat(-(-n // len(wanted)))[:n], model.num_classes)


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

"""Folders of small images, and their latents of tiny VAEs of random weights."""

import numpy as np
from PIL import Image
from stock_models import save, tiny_vae, vae, vq

from fdistill.data.encode_latents import EncodingSettings, encode_folder
from fdistill.models.vae import Decoder

VAES = {
    "AutoencoderKL": lambda: vae(scaling_factor=0.4, shift_factor=0.3),
    "by channel": lambda: vae(latents_std=[0.5, 1.0, 2.0, 3.0], latents_mean=[0.1, 0.2, 0.3, -0.4]),
    "VQModel": vq,
    "AutoencoderTiny": tiny_vae,
}


def pictures(folder, count=20, classes=0, side=8, suffix="png"):
    """Noise, in class sub-folders a, b, ... in turn where there are classes."""
    for i in range(count):
        path = folder / ("abcdef"[i % classes] if classes else "") / f"{i:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return folder


def latents(folder, kind="AutoencoderKL", images=None, count=20, classes=0, **asked):
    """A folder of latents, beside its VAE (`own_vae`) and its images."""
    images = pictures(folder / "images", count, classes) if images is None else images
    save(VAES[kind](), folder / "own_vae")
    encode_folder(EncodingSettings(images, Decoder(folder / "own_vae"), 8, **asked), folder / "latents")
    return folder / "latents"

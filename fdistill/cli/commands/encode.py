"""`fdistill encode`: images become latents once, so that training reads latents and needs no VAE."""

from pathlib import Path

from fdistill.core.devices import usable_device
from fdistill.core.places import require_writable
from fdistill.data import LatentFolder
from fdistill.data.encode_latents import EncodingSettings, encode_folder
from fdistill.models.vae import Decoder


def encode(
    images: str,
    vae: str | None = None,
    out: str = "latents",
    resolution: int = 256,
    flips: bool = False,
    half: bool = False,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
) -> None:
    """Encode a folder of images with a VAE; a command that was interrupted goes on, one that is done does nothing.

    Args:
        images: folder of image files, in class sub-folders or not, or of .tar or .zip files of them.
        vae: folder of the VAE as diffusers saves it: AutoencoderKL, VQModel or AutoencoderTiny; a latent teacher's is
            TEACHER/vae.
        out: folder to write, for the data LatentFolder: latents, labels, latents.json and a copy of the VAE.
        resolution: height and width in pixels that images are cropped and resized to.
        flips: encode the mirror image of each image too, as twice as many samples.
        half: store numbers of 16 bits, at half the size.
        batch_size: images at once.
        num_workers: processes that decode images.
        device: where to encode: cpu, cuda, cuda:1, mps.
        overwrite: encode again and replace whatever latents are there.
    """
    if vae is None:
        raise ValueError("encode needs the VAE whose latents a model is to see: give --vae FOLDER")
    target = Path(out)
    require_writable(target / "latents.json")
    if target.is_file():
        raise NotADirectoryError(f"cannot write {target}: it is a file; name a folder")
    if Path(images).resolve() in (target.resolve(), *target.resolve().parents):
        raise ValueError(f"{target} lies in the folder of images: name a folder outside of {images}")
    coder = Decoder(vae).to(usable_device(device))
    settings = EncodingSettings(Path(images), coder, resolution, flips, half, batch_size, num_workers)
    count, encoded = encode_folder(settings, target, overwrite)
    if not encoded:
        print(f"{target} holds the latents of these {count:,} images already; nothing was computed")
        return
    data = LatentFolder(str(target))
    shape = " x ".join(map(str, data.sample_shape))
    print(f"wrote latents {shape} of {count:,} images to {target}; {encoded:,} were encoded now")
    print(f"to train on them: --data LatentFolder --data.folder {target}")
    print(f"their standard deviation, for sigma_data: {data.data_std():.4g}")

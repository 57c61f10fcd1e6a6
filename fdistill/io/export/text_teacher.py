"""A text-to-image teacher that was trained here, written as a stock pipeline like those of others."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdistill.models.guidance import Guidance
from fdistill.models.networks import WordUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import DDPMPath
from fdistill.theory.preconditioning import VPrediction

STEPS = 25
"""That its card calls the pipeline with."""
_SMALL = 1024.0  # a decoder of diffusers bends what is large: latents come to it divided by this, and are multiplied


def is_text_teacher(model: GenerativeModel) -> bool:
    """Whether a model is a teacher whose network is a text model and a UNet of Stable Diffusion."""
    return model.kind == "teacher" and isinstance(model.denoiser.network, WordUNet)


def check_text_teacher(model: GenerativeModel) -> None:
    """Raises ValueError where no stock pipeline runs a teacher that `is_text_teacher`."""
    known = model.denoiser.preconditioning
    if not (isinstance(known, VPrediction) and isinstance(known.path, DDPMPath)):
        path = type(getattr(known, "path", None)).__name__
        raise ValueError(f"a stock pipeline is written of VPrediction on DDPMPath: got {type(known).__name__}, {path}")


def write_text_teacher(model: GenerativeModel, folder: Path) -> None:
    """Write a StableDiffusionPipeline of pixels: UNet, text model, tokenizer, DDIM, and a VAE that changes nothing.

    Args:
        model: of `check_text_teacher`.
        folder: an empty one.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    network: Any = model.denoiser.network
    path: Any = model.denoiser.preconditioning.path  # type: ignore[attr-defined]  # as `check_text_teacher` found
    arguments = path.spec()["init_args"]
    scheduler = DDIMScheduler(
        num_train_timesteps=path.num_timesteps,
        **{name: arguments[name] for name in ("beta_start", "beta_end", "beta_schedule", "trained_betas")},
        rescale_betas_zero_snr=arguments["zero_terminal_snr"],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # not read with this spacing; pipelines warn of any other
        clip_sample=False,
        set_alpha_to_one=True,
    )
    pipeline = StableDiffusionPipeline(
        vae=pixel_vae(network.sample_shape[0]),
        text_encoder=copy.deepcopy(network.text).cpu(),
        tokenizer=network.tokenizer,
        unet=copy.deepcopy(network.unet.stock).cpu(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def pixel_vae(channels: int) -> Any:
    """An `AutoencoderTiny` whose latents are the image: stock pipelines have a VAE, and this one is the identity.

    Its layers keep x as max(x, 0) and max(-x, 0), and its decoder's 3 tanh(x / 3) is x, to rounding, where x is small.
    """
    from diffusers import AutoencoderTiny

    kept = 2 * channels
    vae: Any = AutoencoderTiny(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        encoder_block_out_channels=(kept,),
        decoder_block_out_channels=(kept,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
        scaling_factor=_SMALL,
    )
    for value in vae.parameters():
        nn.init.zeros_(value)
    eye, nothing = torch.eye(channels), torch.zeros(channels)
    encoder, decoder = ([m for m in half.layers if isinstance(m, nn.Conv2d)] for half in (vae.encoder, vae.decoder))
    # an encoder sees (x + 1) / 2, and a decoder's images y become 2 y - 1
    _set(encoder[0], torch.cat([eye, -eye]), torch.zeros(kept))
    _set(encoder[-1], torch.cat([eye, -eye], 1) * 2 / _SMALL, nothing - 1 / _SMALL)
    _set(decoder[0], torch.cat([eye, -eye]), torch.zeros(kept))
    _set(decoder[-1], torch.cat([eye, -eye], 1) * _SMALL / 2, nothing + 0.5)
    return vae.eval().requires_grad_(False)


def _set(layer: nn.Conv2d, matrix: Tensor, bias: Tensor) -> None:
    """The same matrix at every pixel."""
    height, width = layer.kernel_size
    with torch.no_grad():
        layer.weight[:, :, height // 2, width // 2] = matrix
        if layer.bias is not None:
            layer.bias.copy_(bias)


def text_teacher_card(model: GenerativeModel, name: str) -> tuple[list[str], str]:
    """Front matter and the section on use of its model card."""
    code = (
        "from diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{name}")\n'
        f'image = pipeline("a prompt", num_inference_steps={STEPS}, '
        f"guidance_scale={Guidance.of(model.guidance).scale:g}).images[0]"
    )
    return ["library_name: diffusers", "pipeline_tag: text-to-image"], f"## Use\n\n```python\n{code}\n```"

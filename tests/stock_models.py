"""Diffusion models of diffusers, tiny and of random weights, as `save_pretrained` writes them."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiTTransformer2DModel, UNet2DModel, VQModel

SMALL_UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
SMALL_DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
    "norm_num_groups": 8,
}
SMALL_VAE = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "layers_per_block": 1,
}


def built(cls, config, seed=0):
    """A model of diffusers with random weights, in evaluation mode; global randomness is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(**config).eval()


def unet(**changes):
    return built(UNet2DModel, SMALL_UNET | changes)


def dit(**changes):
    return built(DiTTransformer2DModel, SMALL_DIT | changes)


def vae(**changes):
    return built(AutoencoderKL, SMALL_VAE | changes, seed=1)


def vq(**changes):
    config = {name: value for name, value in SMALL_VAE.items() if name != "latent_channels"}
    return built(VQModel, config | {"latent_channels": 3, "num_vq_embeddings": 16} | changes, seed=1)


def tiny_vae():
    blocks = {f"{half}_block_out_channels": [8] * 2 for half in ("encoder", "decoder")}
    return built(AutoencoderTiny, blocks | {"num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1]})


def ddim(**changes):
    """A DDIM scheduler that does not clip, as samplers of exact theory do not."""
    return DDIMScheduler(**{"clip_sample": False} | changes)


def save(pipeline, folder):
    """The folder of a pipeline (or of one network)."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder

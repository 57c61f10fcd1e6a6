"""Memory of a forward and a backward pass in float32 and under bf16 autocast, of a UNet and of FLUX's transformer.

    python tools/autocast_memory.py

Small networks with random weights, batch 1, on the CPU; counted are the bytes of all tensors that the passes make and
that live at once. `fdistill plan` takes half of float32's activations for bf16-mixed, and counts no bf16 copies of
weights.
"""

import argparse
import copy
from contextlib import nullcontext
from typing import Any

import torch

from fdistill.models.adapters import with_adapters
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks.text import TextToImageNetwork
from fdistill.theory.preconditioning import VelocityPrediction
from fdistill.training.planning.dry_turn import Meter

FLUX = {"num_layers": 2, "num_single_layers": 4, "attention_head_dim": 64, "num_attention_heads": 4}
FLUX |= {
    "joint_attention_dim": 256,
    "pooled_projection_dim": 64,
    "axes_dims_rope": (16, 24, 24),
    "guidance_embeds": True,
}
UNET = {"block_out_channels": [96, 192, 384, 384], "cross_attention_dim": 256}
NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": {"family": "sd", "sample_shape": [4, 32, 32], "config": UNET, "null": {"encoder_hidden_states": [77, 256]}},
    "FLUX": {"family": "flux", "sample_shape": [16, 64, 64], "config": FLUX, "guidance": 3.5},
}
WAYS = {
    "full copy": (torch.float32, False),
    "full copy, autocast": (torch.float32, True),
    "adapters": (torch.float32, False),
    "adapters, autocast": (torch.float32, True),
    "adapters, autocast, base in bfloat16": (torch.bfloat16, True),
    "adapters, autocast, base in int8": (torch.int8, True),
}


def measured(base: Denoiser, way: str) -> tuple[int, int, int]:
    """Bytes after the forward pass, at the most, and of the gradients."""
    held, mixed = WAYS[way]
    denoiser = copy.deepcopy(base)
    if way.startswith("adapters"):
        denoiser = with_adapters(denoiser.hold_in(held), 8, targets="attention")
    named = {}
    for name, (shape, dtype, _) in denoiser.takes.items():
        named[name] = torch.zeros(1, *(size or 77 for size in shape), dtype=dtype)
    x, sigma = torch.zeros(1, *denoiser.sample_shape), torch.full((1,), 0.5)
    with Meter() as meter:
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            loss = denoiser(x, sigma, Condition(named)).square().mean()
        forward = meter.now
        loss.backward()
    return forward, meter.peak, sum(p.grad.nbytes for p in denoiser.parameters() if p.grad is not None)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| network | | after the forward pass, MB | at the most | gradients |\n|---|---|--:|--:|--:|")
    for name, arguments in NETWORKS.items():
        torch.manual_seed(0)
        base = Denoiser(TextToImageNetwork(**arguments), VelocityPrediction(time_scale=1)).train()
        weights = sum(parameter.numel() for parameter in base.parameters())
        for way in WAYS:
            cells = " | ".join(f"{size / 1e6:.1f}" for size in measured(base, way))
            print(f"| {name}, {weights / 1e6:.1f}M weights | {way} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

"""Rewards of a rollout's samples, on images as people see them; what a reward may do wrong is said in one line."""

from collections.abc import Callable

import torch
from torch import Tensor

from fdistill.models.condition import Condition
from fdistill.objectives.rewards import Reward, worth


@torch.no_grad()
def judged(
    reward: Reward,
    samples: Tensor,
    condition: Condition,
    decoder: Callable[[Tensor], Tensor] | None,
    device: torch.device,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """Each part's reward, float32 [N, parts], and the share of an image's values outside of [-1, 1], [].

    Images [B, C, H, W] are clamped to [-1, 1] before they are judged, so that no reward is earned where a saved
    picture has nothing; other samples are judged as they are.

    Args:
        reward: judges.
        samples: [N, *sample_shape].
        condition: of N samples, or empty.
        decoder: makes images of samples that are latents.
        device: where they are judged.
        at_once: samples judged together.

    Raises:
        ValueError: where a reward raises, is not finite, or not one number a sample.
    """
    scores, outside = [], []
    for x, its in zip(samples.split(at_once), condition.split(at_once), strict=False):
        images = (x if decoder is None else decoder(x)).to(device)
        outside.append((images.abs() > 1).float().mean() * len(x) / len(samples))
        images = images.clamp(-1, 1) if images.ndim == 4 else images
        parts = [_checked(name, part, images, its.to(device)) for name, part in reward.parts().items()]
        scores.append(torch.stack(parts, 1))
    return torch.cat(scores), torch.stack(outside).sum()


def _checked(name: str, reward: Reward, images: Tensor, condition: Condition) -> Tensor:
    found = worth(name, reward, images, condition)
    broken = int((~found.isfinite()).sum())
    if broken:
        raise ValueError(f"the reward {name} is NaN or infinite for {broken} of {len(images)} samples")
    return found.float().to(images.device)

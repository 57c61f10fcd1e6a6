"""The reward of stochastic and of deterministic samples of teachers, from the same noise, with standard errors.

    python tools/reward_gap.py digits-teacher runs/quickstart/reward/checkpoints/last.ckpt

Latents and noise are functions of --seed; classes come in turn; images are clamped to [-1, 1] before they are judged.
"""

import argparse

import torch

from fdistill.io.load import load_model
from fdistill.objectives import image_rewards
from fdistill.sampling import GDDIM, generate
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import KarrasGrid


def rewards(model: GenerativeModel, reward: str, steps: int, eta: float, n: int, seed: int) -> torch.Tensor:
    """The reward [n] of samples of steps of GDDIM on EDM's grid; of the model's own sampler where steps is 0."""
    latents = torch.randn(n, *model.denoiser.sample_shape, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % model.num_classes if model.num_classes else None
    if steps:
        levels = KarrasGrid(steps, 0.02).levels()
        x = generate(GDDIM(eta), model.denoiser, latents, levels, labels)
    else:
        x = model.sample(latents, labels)
    images = x if model.decoder is None else model.decode(x)
    return getattr(image_rewards, reward)()(images.clamp(-1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="teachers: run checkpoints, exported folders, names")
    parser.add_argument("--reward", default="Brightness", help="class of fdistill.objectives.image_rewards")
    parser.add_argument("--etas", nargs="+", type=float, default=[0.0, 1.2])
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 20])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for path in options.models:
        model = load_model(path)
        for steps, eta in [(steps, eta) for steps in options.steps for eta in options.etas] + [(0, 0.0)]:
            found = rewards(model, options.reward, steps, eta, options.n, options.seed)
            sampler = f"{steps} steps, eta {eta:g}" if steps else "own sampler"
            print(f"{path}: {sampler}: {found.mean():.4f} +- {found.std() / options.n**0.5:.4f}", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

"""The reward of stochastic and of deterministic samples of teachers, from the same latents, and their diversity.

    python tools/reward_gap.py digits-teacher runs/quickstart/reward/checkpoints/last.ckpt

What `RewardGap` logs of a run, of finished models. Every eta is compared with eta 0; intervals are of 95%. Images are
clamped to [-1, 1] before they are judged.
"""

import argparse

import torch

from fdistill.data import Digits
from fdistill.evaluation.reward_gap import Gap, GapProbe, Z
from fdistill.io.load import load_model
from fdistill.objectives import image_rewards
from fdistill.training.judging import judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="teachers of digits: run checkpoints, exported folders, names")
    parser.add_argument("--reward", default="Brightness", help="class of fdistill.objectives.image_rewards")
    parser.add_argument("--etas", nargs="+", type=float, default=[1.2])
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 20])
    parser.add_argument("--seeds", type=int, default=100, help="samples of each class")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    reward = getattr(image_rewards, options.reward)()
    probe = GapProbe(Digits(), (80.0, 0.02), seeds=options.seeds, seed=options.seed)

    def judge(pictures: torch.Tensor, condition: object) -> torch.Tensor:
        return judged(reward, pictures, condition, None, torch.device("cpu"), 500)[0]

    for path in options.models:
        model = load_model(path)
        for steps in options.steps:
            looks = {eta: probe.look(model, judge, steps, eta) for eta in [0.0, *options.etas]}
            for eta, look in looks.items():
                scores, without = look.scores[:, 0], looks[0.0].scores[:, 0]
                gap = Gap.of(scores, without)
                error = Z * float(scores.std()) / len(scores) ** 0.5
                print(
                    f"{path}: {steps} steps, eta {eta:g}: {options.reward} {scores.mean():.4f} +- {error:.4f}, gap "
                    f"{gap.mean:.4f} +- {Z * gap.error:.4f}, "
                    + ", ".join(f"{name} {value:.3f}" for name, value in look.values.items()),
                    flush=True,
                )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

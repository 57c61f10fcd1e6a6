"""How often is the alarm for reward hacking wrong, and what does it find? Digits, brightness, 10 steps without noise.

    python tools/benchmark_hacking.py

As `RewardGap` measures: 10 classes of 32 samples, bands of 8 draws of the untuned teacher. Healthy evaluations are
further draws of the untuned teacher, judged by the bands of each group of 8 in turn: the first draw of the group is the
start. Hacked are: pictures of which a share is white; classes all of whose samples are the brightest of the class;
teachers tuned by Flow-GRPO (eta 1.2, 100 samples a turn), which healthy tuning begins as, too. Found is the share of
groups whose bands and start give an alarm.
"""

import argparse
import functools
from collections.abc import Callable

import lightning.pytorch as L
import torch
from torch import Tensor

from fdistill.data import Digits
from fdistill.evaluation.reward_gap import Gap, GapProbe, Look
from fdistill.evaluation.reward_hacking import HackingAlarm
from fdistill.io.load import load_model
from fdistill.objectives.image_rewards import Brightness
from fdistill.objectives.reward_algorithms import FlowGRPO
from fdistill.sampling.grids import KarrasGrid
from fdistill.training import RewardTuningModule

STEPS, SIGMA_MIN, DRAWS = 10, 0.02, 8
CLASSES, SEEDS = 10, 32


def judge(pictures: Tensor, _: object) -> Tensor:
    """Brightness as a run judges it."""
    return Brightness()(pictures.clamp(-1, 1))[:, None]


def white(share: float, pictures: Tensor) -> Tensor:
    """A share of every class is white."""
    found = pictures.unflatten(0, (CLASSES, SEEDS)).clone()
    found[:, : round(share * SEEDS)] = 1.0
    return found.flatten(0, 1)


def one_pose(classes: int, pictures: Tensor) -> Tensor:
    """Of the first classes, all samples are the brightest one, plus a hundredth of noise."""
    found = pictures.unflatten(0, (CLASSES, SEEDS)).clone()
    for number in range(classes):
        found[number] = found[number, found[number].flatten(1).mean(1).argmax()]
    return found.flatten(0, 1) + 0.01 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))


def verdicts(groups: list[list[Look]], names: list[str], looks: Callable[[int], list[Look]]) -> dict[str, float]:
    """Shares of (group, draw) with an alarm, outside of a band, and with more reward; and the number of them."""
    found = []
    for index, group in enumerate(groups):
        for look in looks(index):
            climb = Gap.of(look.scores[:, 0], group[0].scores[:, 0])
            said = HackingAlarm(group, names).update(look, climb, 0).numbers
            found.append((said["alarm"], said["outside"], float(said["climb_low"] > 0)))
    alarm, outside, climbs = torch.tensor(found).mean(0).tolist()
    return {"alarm": alarm, "outside": outside, "more reward": climbs, "evaluations": len(found)}


class Course(L.Callback):
    """Keeps looks at the tuned teacher, from the latents of each group's first draw."""

    def __init__(self, probe: GapProbe, every: int, starts: list[int]) -> None:
        self.probe, self.every, self.starts = probe, every, starts
        self.looks: dict[int, list[Look]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        turn = trainer.global_step
        if turn % self.every or turn in self.looks or not isinstance(pl_module, RewardTuningModule):
            return
        with torch.no_grad():
            model = pl_module.generative_model()
            self.looks[turn] = [self.probe.look(model, judge, STEPS, 0.0, draw) for draw in self.starts]


def tuned(probe: GapProbe, learning_rate: float, turns: int, every: int, starts: list[int]) -> dict[int, list[Look]]:
    """The course of one run."""
    optimizer = functools.partial(torch.optim.AdamW, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    algorithm = FlowGRPO(1.2, 10, kl_weight=0.0)
    module = RewardTuningModule(
        "digits-teacher", Brightness(), algorithm, optimizer, KarrasGrid(STEPS, SIGMA_MIN), seed=0
    )
    course = Course(probe, every, starts)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    L.Trainer(accelerator="cpu", max_steps=turns, callbacks=[course], enable_model_summary=False, **quiet).fit(
        module, datamodule=Digits(batch_size=10)
    )
    return course.looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=25, help="of 8 draws of the untuned teacher")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    model = load_model("digits-teacher")
    probe = GapProbe(Digits(), (80.0, SIGMA_MIN), CLASSES, SEEDS)
    names = probe.probe.names
    starts = [DRAWS * group for group in range(options.groups)]
    with torch.no_grad():
        looks = [probe.look(model, judge, STEPS, 0.0, draw) for draw in range(DRAWS * options.groups)]
        groups = [looks[start : start + DRAWS] for start in starts]

        def report(what: str, others: Callable[[int], list[Look]]) -> None:
            found = verdicts(groups, names, others)
            print(what, {name: round(value, 4) for name, value in found.items()}, flush=True)

        report("untuned teacher", lambda index: looks[: starts[index]] + looks[starts[index] + DRAWS :])
        shown = [probe.pictures(model, STEPS, 0.0, start) for start in starts[:10]]
        for share in (0.03, 0.06, 0.125, 0.25, 0.5):
            mixed = [probe.read(white(share, pictures), judge) for pictures in shown]
            report(f"white: {share:g}", lambda index, found=mixed: found[index : index + 1])
        for classes in (1, 3, 10):
            poses = [probe.read(one_pose(classes, pictures), judge) for pictures in shown]
            report(f"one pose: {classes} classes", lambda index, found=poses: found[index : index + 1])
    few = starts[:3]
    for learning_rate in (1e-4, 3e-4):
        for turn, found in tuned(probe, learning_rate, options.turns, options.every, few).items():
            said = verdicts(groups[: len(few)], names, lambda index, found=found: [found[index]])
            means = {"reward": torch.cat([look.scores for look in found]).mean().item()}
            for name in ("recall", "vendi_ratio", "anchored_tid", "condition_vendi"):
                means[name] = sum(look.values[name] for look in found) / len(found)
            print(
                f"tuned: lr {learning_rate:g}, turn {turn}",
                {k: round(v, 4) for k, v in (said | means).items()},
                flush=True,
            )


if __name__ == "__main__":
    main()

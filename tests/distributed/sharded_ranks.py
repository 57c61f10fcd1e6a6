"""What two processes do whose learning networks are sharded."""

import functools

import torch.distributed as dist
from tiny_runs import distillation, fit, mlp, teacher_training, weights
from torch.distributed.tensor import DTensor

from fdistill.callbacks import PowerAverages, SampleGrid
from fdistill.distributed import whole
from fdistill.loss_weights import LearnedUncertainty
from fdistill.objectives import DMD2, Fisher

SHARDED = {
    "teacher": lambda: teacher_training(loss_weight=LearnedUncertainty(1.0)),
    "fused": lambda: distillation(adversarial_weight=0.1, student=mlp(seed=1), r1_weight=0.1, r1_step=0.1),
    "alternating": lambda: distillation(adversarial_weight=0.1, turn="alternating", fake_updates_per_student=1),
    "features of the fake score": lambda: distillation(
        adversarial_weight=0.1, discriminator="fake_score", r1_weight=0.1, r1_step=0.1
    ),
    "gradients of the networks": lambda: distillation(
        objective=Fisher(), student=mlp(seed=1), fake_score=mlp(seed=2), imitation=0.9
    ),
    "two micro-batches": lambda: distillation(objective=DMD2(0.1, "sigma"), renoise_levels=[0.5], accumulate=2),
}


def whole_weights(module):
    return {name: whole(value).clone() for name, value in weights(module).items()}


def sharded(rank, folder):
    devices = dist.get_world_size()
    five = functools.partial(fit, turns=5, devices=devices)
    found = {}
    for name, build in SHARDED.items():
        replicated, parts = build(), build()
        five(replicated, strategy="replicated")
        five(parts, strategy="sharded")
        held = {n: (p.to_local().numel(), p.numel()) for n, p in parts.named_parameters() if isinstance(p, DTensor)}
        found[name] = {"replicated": weights(replicated), "sharded": whole_weights(parts), "held": held}
    build, path = SHARDED["fused"], folder / "sharded.ckpt"
    watching = [SampleGrid(every_n_turns=2, num_samples=4), PowerAverages([0.1], every_n_updates=2)]
    first = build()
    run = fit(first, 3, devices=devices, strategy="sharded", callbacks=watching, folder=str(folder / "sharded"))
    run.save_checkpoint(path)
    resumed = build()
    five(resumed, strategy="sharded", resume_from=path)
    return found | {"resumed": whole_weights(resumed), "saved": whole_weights(first)}

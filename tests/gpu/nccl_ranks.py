"""What each process of a job on CUDA does and writes down; started with the variables of torchrun.

python tests/gpu/nccl_ranks.py WHAT FOLDER [ACCELERATOR]
"""

import functools
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tiny_runs, as pytest finds it

from tiny_runs import distillation, fit, mlp, teacher_training, weights

from fdistill.core.distributed import whole
from fdistill.objectives import DMD2
from fdistill.training.parallel import ReplicatedStrategy, ShardedStrategy
from fdistill.training.parallel.compression import EF21, BFloat16, PowerSGD, TopK

ADAM = functools.partial(torch.optim.AdamW, lr=1e-2, fused=True)
BUILDS = {
    "teacher": lambda: teacher_training(optimizer=ADAM),
    "fused": lambda: distillation(
        student=mlp(seed=1), adversarial_weight=0.1, student_optimizer=ADAM, fake_score_optimizer=ADAM
    ),
    "alternating": lambda: distillation(
        objective=DMD2(0.1, "sigma"), turn="alternating", student_optimizer=ADAM, fake_score_optimizer=ADAM
    ),
}
COMPRESSIONS = {"bf16": BFloat16, "PowerSGD": lambda: PowerSGD(2), "top-k": lambda: TopK(0.1), "EF21": EF21}


def trained(build, accelerator, strategy, turns=12, **changes):
    module = build()
    devices = int(os.environ["WORLD_SIZE"])
    fit(module, turns, accelerator=accelerator, devices=devices, strategy=strategy, **changes)
    return {name: whole(value).cpu() for name, value in weights(module).items()}


def sharded(accelerator):
    """Each build with whole networks, sharded ones, and sharded ones in bf16; one of them in all other ways too."""
    run = functools.partial(trained, accelerator=accelerator)
    small = functools.partial(distillation, adversarial_weight=0.1, teacher_dtype="bfloat16")
    ways = {
        "replicated": run(small, strategy="replicated"),
        "sharded": run(functools.partial(small, meta_start=True), strategy=ShardedStrategy(cpu_offload=True)),
        "sharded, bf16": run(small, strategy=ShardedStrategy(shard_teacher=False), precision="bf16-mixed"),
    }
    return {"parts on the CPU": ways} | {
        name: {
            "replicated": run(build, strategy="replicated"),
            "sharded": run(build, strategy="sharded"),
            "sharded, bf16": run(build, strategy="sharded", precision="bf16-mixed"),
        }
        for name, build in BUILDS.items()
    }


def replicated(accelerator):
    return {name: trained(build, accelerator, "replicated") for name, build in BUILDS.items()}


def compressed(accelerator):
    run = functools.partial(trained, BUILDS["fused"], accelerator)
    return {name: run(ReplicatedStrategy(compression())) for name, compression in COMPRESSIONS.items()}


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if not sys.argv[3:]:  # parts on the CPU are gathered too, of offloaded networks and after a run
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    given = {"sharded": sharded, "replicated": replicated, "compressed": compressed}[what]
    torch.save(given(*sys.argv[3:] or ["gpu"]), folder / f"{what}.{os.environ['RANK']}.pt")

"""What each of two processes does and writes down; test_two_ranks.py forks them with the variables of torchrun."""

import copy
import functools
import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from compressed_ranks import compressed
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from places import DEVICE, two_places
from sharded_ranks import recomputed, sharded, whole_weights
from tiny_runs import GivenData, Recorded, distillation, fit, mlp, ring, teacher_training, weights
from torch import nn

from fdistill.core.distributed import average_gradients, gather_rows, global_mean, global_sum, world_size
from fdistill.core.random import generator_for
from fdistill.data import Batch
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet
from fdistill.objectives import DMD2, ScoreOfMixture, UniInstruct
from fdistill.objectives.log_ratio import RatioEstimator, SampleDiscriminator, unit_mean
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM
from fdistill.training import NonFiniteError
from fdistill.training.callbacks import CollapseCallback, DiversityCallback, LastCheckpoint, SampleGrid, StudentDistance
from fdistill.training.loggers import JsonlLogger

RANKS = 2
ROWS = (3, 5)  # of rank 0 and 1
REPLICATED = {"strategy": "replicated", "devices": RANKS}


def half(rank):
    """One rank's logits and noise levels."""
    generator = generator_for(11, rank)
    return torch.randn(64, generator=generator) + rank, LogNormal(-0.5, 1.0).sample(64, generator)


def estimator():
    return RatioEstimator(SampleDiscriminator((2,)), LogNormal(-0.5, 1.0), sigma_data=1.0, num_bins=4, decay=0.7)


def small_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def inputs(rank):
    return torch.randn(6, 3, generator=generator_for(12, rank))


def rows(rank):
    return torch.arange(ROWS[rank] * 2.0).reshape(-1, 2) + 100 * rank


def comparable(lr=1.0, **changes):
    """A run in which each network's change in a turn is its gradient."""
    sgd = functools.partial(Recorded, lr=lr)
    arguments = {"adversarial_weight": 0.3, "student_optimizer": sgd, "fake_score_optimizer": sgd}
    arguments |= {"gradient_clip": 1e9, "seed": 4, "student": mlp(seed=1), "fake_score": mlp(seed=2)}
    return distillation(**arguments | changes)


COMPARABLE = {
    "teacher": (1, lambda **more: teacher_training(optimizer=Recorded, gradient_clip=1e9, seed=4, **more)),
    "normalised ratio": (1, comparable),
    "normalised coefficient": (
        1,
        functools.partial(comparable, objective=UniInstruct(JensenShannon(), "normalised"), discriminator="sample"),
    ),
    "alternating": (2, functools.partial(comparable, turn="alternating", fake_updates_per_student=1)),
    "two micro-batches": (1, functools.partial(comparable, objective=DMD2(0.3, "sigma"), r1_weight=0.1)),
}
"""Number of turns, and what both the two processes and the one train."""


def with_the_batches_of_both(module):
    """The same module, whose turns draw the noise of both ranks and put their samples one after the other."""
    step, levels = module.training_step, copy.copy(module.noise_levels)

    def of_both(draw):
        return lambda count, streams: torch.cat([draw(count // RANKS, stream) for stream in streams])

    def normal(shape, streams):
        return of_both(lambda n, stream: torch.randn(n, *shape[1:], generator=stream))(shape[0], streams)

    def training_step(batch, batch_idx):
        order = torch.cat([torch.arange(rank, len(batch.x), RANKS) for rank in range(RANKS)])
        return step(Batch(batch.x[order], batch.classes[order], batch.condition.rows(order)), batch_idx)

    sample = of_both(module.noise_levels.sample)
    levels.sample = lambda count, streams, device: sample(count, streams)
    module.noise_levels = module.fake_noise_levels = levels
    module.noise_source = lambda: [generator_for(module.seed, module.global_step, rank) for rank in range(RANKS)]
    module.normal, module.training_step = normal, training_step
    return module


def unet_with_dropout():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(DiffusersUNet(resolution=4, widths=(8,), dropout=0.3), EDM(1.0))


def images():
    return GivenData(torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), batch_size=8)


def sums_over_ranks(rank):
    ratio, (logit, sigma) = estimator(), half(rank)
    log_ratio = ratio.log_ratio(logit, sigma)
    network = small_network()
    network[0].bias.requires_grad_(False)  # a parameter without gradient is passed over
    network(inputs(rank)).square().mean().backward()
    average_gradients(network.parameters())
    experts = torch.nn.ParameterList([torch.ones(2), torch.ones(3)])
    (experts[rank] * (rank + 1)).sum().backward()  # no sample of this rank asked the other one
    average_gradients(experts.parameters())
    return {
        "experts": [p.grad for p in experts.parameters()],
        "world_size": world_size(),
        "sum": global_sum(torch.tensor([1.0, rank])),
        "mean": global_mean(half(rank)[0]),
        "unit_mean": unit_mean(log_ratio.exp()),
        "log_ratio": log_ratio,
        "ratio_buffers": dict(ratio.named_buffers()),
        "gradients": [p.grad for p in network.parameters()],
        "gathered": gather_rows(rows(rank)),
        "on the host": refusal(lambda: gather_rows(rows(rank).cpu())),
    }


def refusal(collective):
    try:
        collective()
    except RuntimeError as error:
        return str(error)


TURNS = 8


def turns(rank, kind):
    """Eight turns from a start that differs between the ranks, until the strategy makes it the same."""
    if kind == "teacher":
        module = teacher_training()
    else:
        module = distillation(turn=kind, fake_updates_per_student=2, adversarial_weight=0.1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * rank)
    seen = []
    learning = module.denoiser if kind == "teacher" else module.fake_score
    learning.register_forward_pre_hook(lambda _, given: seen.append(given[1].clone()))
    run = fit(module, TURNS, **REPLICATED)
    return {"weights": weights(module), "noise": torch.stack(seen), "global_step": run.global_step}


OBJECTIVES = {
    "several steps": lambda: {"renoise_levels": [0.8, 0.3], "adversarial_weight": 0.1},
    "Uni-Instruct": lambda: {"objective": UniInstruct(JensenShannon(), "normalised")},
    "random skews": lambda: {"objective": ScoreOfMixture(adversarial_weight=0.1), "r1_weight": 0.1, "r1_step": 0.1},
}


def objective_turns(rank, name):
    """Four fused turns, the batch of the student's steps in each, and the weights."""
    module = distillation(**OBJECTIVES[name]())
    steps, now = [], []
    module.student.register_forward_hook(lambda *_: now.append(1))
    watch = Callback()
    watch.on_train_batch_end = lambda *_: (steps.append(len(now)), now.clear())
    fit(module, 4, callbacks=[watch], **REPLICATED)
    return {"weights": weights(module), "steps": steps}


def comparable_turns(name):
    turns, build = COMPARABLE[name]
    module = build(accumulate=2) if name == "two micro-batches" else build()
    before = weights(module)
    fit(module, turns, ring(batch_size=32), **REPLICATED)
    return {"before": before, "after": weights(module)}


class RandomStates(Callback):
    """Torch's random state at the start of the first turn."""

    def on_train_batch_start(self, trainer, module, *_):
        self.__dict__.setdefault("first", torch.get_rng_state())


def elastic(folder):
    """Four turns of two processes; a checkpoint after two of them; and two turns from the checkpoint of one process."""
    path, watch = folder / "two_ranks.ckpt", RandomStates()
    whole = comparable(lr=0.1)
    fit(whole, 4, ring(batch_size=32), **REPLICATED)
    fit(comparable(lr=0.1), 2, ring(batch_size=32), **REPLICATED).save_checkpoint(path)
    joined = comparable(lr=0.1)
    run = fit(joined, 4, ring(batch_size=32), resume_from=folder / "one_process.ckpt", callbacks=[watch], **REPLICATED)
    seen = {"global_step": run.global_step, "random_state": watch.first}
    return {"whole": weights(whole), "joined": weights(joined), **seen}


def joined_in_parts(folder):
    """The last two turns of `elastic` from the checkpoint of one process, in parts, started with numbers on rank 0."""
    module, path = comparable(lr=0.1, meta_start=True), folder / "one_process.ckpt"
    fit(module, 4, ring(batch_size=32), resume_from=path, strategy="sharded", devices=RANKS)
    return whole_weights(module)


def resume(rank, folder):
    """Four turns with dropout, of which the last two run again from a checkpoint."""
    path, ends = folder / "resume.ckpt", []
    for turns, resume_from in ((2, None), (4, path), (4, None)):
        torch.manual_seed(rank if resume_from is None else 50 + rank)
        module = teacher_training(unet_with_dropout().network)
        run = fit(module, turns, images(), resume_from=resume_from, **REPLICATED)
        if turns == 2:
            run.save_checkpoint(path)
            saved_state = torch.get_rng_state()
        ends.append(weights(module))
    return {"resumed": ends[1], "uninterrupted": ends[2], "random_state": saved_state}


def callbacks(folder):
    module, folder = distillation(), folder / "callbacks"
    made = [
        SampleGrid(every_n_turns=2, num_samples=4),
        StudentDistance(every_n_turns=2, num_samples=50),
        LastCheckpoint(every_n_turns=3),
        best_checkpoint(),
    ]
    logger = JsonlLogger(str(folder))
    run = fit(
        module,
        5,
        callbacks=made,
        folder=str(folder),
        logger=logger,
        enable_checkpointing=True,
        limit_val_batches=1.0,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        **REPLICATED,
    )
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    return {"metrics": metrics, "best": float(made[3].best_model_score)}


def measured_run(**changes):
    """What a run of a student that does not move measures of itself."""
    module = distillation(student_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    watching = [DiversityCallback(every_n_updates=1, num_samples=101), CollapseCallback(num_splits=3, grace_updates=0)]
    fit(module, 2, callbacks=watching, **changes)
    diversity, collapse = watching
    return {"values": diversity.latest[1], "margins": collapse.verdict.margins, "alarm": collapse.verdict.alarm}


def best_checkpoint():
    return ModelCheckpoint(
        filename="best",
        monitor="metric/pixel_frechet_distance",
        every_n_train_steps=2,
        enable_version_counter=False,
    )


def one_rank_fails(rank):
    module = distillation()
    before = weights(module)
    if rank == 1:
        parameter = next(module.student.parameters())
        parameter.register_hook(lambda gradient: gradient * torch.nan)
    try:
        fit(module, 2, **REPLICATED)
    except NonFiniteError as error:
        unchanged = all(torch.equal(p, before[name]) for name, p in module.named_parameters())
        return {"error": str(error), "unchanged": unchanged}
    return {"error": None}


def on_the_device(part):
    """The part, whose own tensors stand for those of a module."""

    def on_device():
        with DEVICE:
            return part()

    return on_device


def main(folder):
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    parts = {
        "sums": on_the_device(lambda: sums_over_ranks(rank)),
        "teacher": lambda: turns(rank, "teacher"),
        "fused": lambda: turns(rank, "fused"),
        "alternating": lambda: turns(rank, "alternating"),
        **{name: functools.partial(objective_turns, rank, name) for name in OBJECTIVES},
        **{f"one turn: {name}": functools.partial(comparable_turns, name) for name in COMPARABLE},
        "elastic": lambda: elastic(folder),
        "compressed": on_the_device(lambda: compressed(rank, folder)),
        "sharded": lambda: sharded(rank, folder) | {"joined": joined_in_parts(folder)},
        "recomputed": recomputed,
        "resume": lambda: resume(rank, folder),
        "one_rank_fails": lambda: one_rank_fails(rank),
        "callbacks": lambda: callbacks(folder),
        "measured": lambda: measured_run(**REPLICATED),
    }
    results = {}
    for name, part in parts.items():
        print("begins", name, flush=True)  # in the log, to tell where a rank hangs
        # what the backward pass computes again runs outside of that mode, and torch compares the devices
        with nullcontext() if part is recomputed else two_places():
            results[name] = part()
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()

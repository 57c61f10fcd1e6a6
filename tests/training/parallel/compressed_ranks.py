"""What two processes do whose gradients are compressed."""

import torch
import torch.distributed as dist
from tiny_runs import distillation, fit, weights
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from fdistill.core.random import generator_for
from fdistill.training.parallel import ReplicatedStrategy
from fdistill.training.parallel.compression import EF21, BFloat16, PowerSGD, TopK

KINDS = {
    "bf16": BFloat16,
    "PowerSGD": lambda: PowerSGD(2),
    "top-k": lambda: TopK(0.1),
    "all of top-k": lambda: TopK(1.0),
    "EF21": lambda: EF21(0.1, 0.9),
}


class Greedy(TopK):
    """Top-k that forgets what it did not send."""

    def exchange(self, gradient, shapes, memory):
        return super().exchange(gradient, shapes, memory)._replace(memory=memory)


class Bucket:
    """What torch's hook asks of DDP's bucket, which only DDP can make."""

    def __init__(self, tensors):
        self.flat = torch.cat([tensor.flatten() for tensor in tensors])
        self.parts = [p.view_as(t) for p, t in zip(self.flat.split([t.numel() for t in tensors]), tensors, strict=True)]

    def buffer(self):
        return self.flat

    def gradients(self):
        return self.parts

    def index(self):
        return 0

    def is_last(self):
        return True


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 10), nn.Conv2d(3, 8, 3))


def gradients(rank, turn):
    generator = generator_for(13, turn, rank)
    return [torch.randn(parameter.shape, generator=generator) for parameter in network().parameters()]


def exchanged(compression, net, given):
    for parameter, gradient in zip(net.parameters(), given, strict=True):
        parameter.grad = gradient.clone()
    compression.average({"net": net})
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])


def means(rank, name):
    """Five exchanges; then one to which rank 1 brings a NaN, and what the memory was before and after it."""
    compression, net = KINDS[name](), network()
    found = [exchanged(compression, net, gradients(rank, turn)) for turn in range(5)]
    before = {key: value.clone() for key, value in compression._memory["net"].items()}
    given = gradients(rank, 5)
    if rank == 1:
        given[0][0, 0] = torch.nan
    broken = exchanged(compression, net, given)
    return {"means": found, "broken": broken, "before": before, "after": compression._memory["net"]}


def torch_power_sgd(rank):
    """The same five exchanges by torch's own hook, from the same factors."""
    state = PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2, min_compression_rate=1)
    state.iter = 2
    shapes = [parameter.shape for parameter in network().parameters()]
    sizes = [(shape[0], shape.numel() // shape[0]) for shape in shapes if PowerSGD(2).shrinks(shape)]
    state.p_memory_dict[0] = torch.empty(sum(2 * n for n, _ in sizes))
    state.q_memory_dict[0] = PowerSGD(2).start(shapes)["factors"]
    found = []
    for turn in range(5):
        bucket = Bucket(gradients(rank, turn))
        powerSGD_hook(state, bucket).wait()
        found.append(bucket.buffer().clone())
    return found


def descent(rank, compression):
    """Gradients (x_1 +- 10, x_2 - 1) of the two ranks, of which one entry is sent: where x is after 300 steps."""
    net, x, steps = nn.Linear(2, 1, bias=False), torch.zeros(2), []
    for _ in range(300):
        gradient = x - torch.tensor([10.0 if rank else -10.0, 1.0])
        x = x - 0.04 * exchanged(compression, net, [gradient[None]])
        steps.append(x)
    return torch.stack(steps[-100:]).mean(0)


def compressed_turns(name):
    """Two turns of a run, and its weights."""
    module = distillation(adversarial_weight=0.1)
    fit(module, 2, strategy=ReplicatedStrategy(KINDS[name]()), devices=dist.get_world_size())
    return weights(module)


def compressed_resume(folder):
    """Four turns, of which the last two run again from a checkpoint; the memory that each rank saved."""
    path, ends = folder / "compressed.ckpt", []
    for turns, resume_from in ((2, None), (4, path), (4, None)):
        module, strategy = distillation(adversarial_weight=0.1), ReplicatedStrategy(EF21(0.1, 0.9))
        run = fit(module, turns, strategy=strategy, devices=dist.get_world_size(), resume_from=resume_from)
        if turns == 2:
            run.save_checkpoint(path)
            own = {name: dict(memory) for name, memory in strategy.compression._memory.items()}
        ends.append(weights(module))
    return {"resumed": ends[1], "uninterrupted": ends[2], "memory": own}


def compressed(rank, folder):
    return {
        **{name: means(rank, name) for name in KINDS},
        "torch": torch_power_sgd(rank),
        "turns": {name: compressed_turns(name) for name in KINDS},
        "resume": compressed_resume(folder),
        "greedy": descent(rank, Greedy(0.5)),
        "feedback": [descent(rank, TopK(0.5)), descent(rank, EF21(0.5, 0.0))],
    }

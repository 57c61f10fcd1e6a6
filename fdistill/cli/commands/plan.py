"""`fdistill plan`: memory, FLOPs and days of a fit on a kind and number of GPUs, before it is started."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import torch

from fdistill.cli.commands.explain import choices
from fdistill.cli.fit import TrainerCLI, run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.core.meta_device import without_weights
from fdistill.core.places import require_writable
from fdistill.evaluation.report.plan_table import print_measured, print_plan, print_quote
from fdistill.training import DistillationModule
from fdistill.training.planning import GPUS, Gpu, Plan, plan_run
from fdistill.training.planning.hardware import Arithmetic, measured_ceiling
from fdistill.training.planning.scaling_law import packaged_law, quote
from fdistill.training.planning.turn_clock import TurnClock
from fdistill.training.quiet import quiet
from fdistill.training.run_parts import set_callbacks

_BUILT_HERE = {  # of the trainer that the configuration is for, what this machine may lack, or that would write files
    "accelerator": "cpu",
    "devices": "1",
    "num_nodes": "1",
    "logger": "false",
    "callbacks": "[]",
    "enable_progress_bar": "false",
    "enable_checkpointing": "false",
}
_LEAST_MEASURED = 10  # turns; the first ones, which allocate, are not counted
_UNCOUNTED = 3


def plan(
    settings: list[str],
    gpu: str = "H100",
    gpus: int = 1,
    gpus_per_node: int = 8,
    network_gbit: float = 400.0,
    arithmetic: Arithmetic | None = None,
    mfu: float = 0.4,
    measure: int = 0,
    out: str | None = None,
) -> None:
    """Print what a run needs: memory of a GPU, FLOPs of a turn, a bound on its time, days to the last turn.

    Where a measured scaling law covers the run, also what it predicts, with intervals; elsewhere why there is none.

    All other options are those of fdistill fit: the same --config files, and overrides such as --data.batch_size 64.
    Nothing is trained, and nothing is written but --out.

    Args:
        settings: arguments of fit.
        gpu: A100, H100, H200, B200, L40S or RTX4090, at the rates of the vendor's data sheets.
        gpus: how many; each has the batch size of the configuration.
        gpus_per_node: in one machine.
        network_gbit: of each GPU to other machines, Gbit/s.
        arithmetic: of matrix products: bf16, tf32 or fp32; bf16 under precision bf16-mixed, else tf32, if not given.
        mfu: share of the peak rate that the network reaches, in (0, 1]; measure it by a short run.
        measure: make so many turns here, on the CPU, and compare them with a bound from its matrix products.
        out: JSON file to write.
    """
    device = _known(gpu)
    for name, value in {"gpus": gpus, "gpus_per_node": gpus_per_node, "network_gbit": network_gbit}.items():
        if not value > 0:
            raise ValueError(f"{name} is positive: got {value}")
    if measure and measure < _LEAST_MEASURED:
        raise ValueError(f"measure is 0 for no turns, or at least {_LEAST_MEASURED}: got {measure}")
    if out is not None:
        require_writable(Path(out))
    if measure:
        _measured(settings, measure, out)
        return
    with without_weights():
        cli = _built(settings)
    mixed = cli.trainer.precision == "bf16-mixed"
    used = arithmetic or ("bf16" if mixed else "tf32")
    link = device.link if gpus <= gpus_per_node else min(device.link, network_gbit * 1e9 / 8)
    strategy = cli.trainer.strategy
    made = plan_run(cli.model, cli.datamodule.batch_size, _turns(cli), device, gpus, link, used, mfu, mixed, strategy)
    hardware = {"gpu": gpu, "memory": device.memory, "arithmetic": used, "peak": device.peak(used), "link": link}
    content = {"hardware": hardware | {"mfu": mfu}, **_plain(made)}
    print_plan(content)
    if isinstance(cli.model, DistillationModule):
        content["scaling"] = quote(packaged_law(), cli.model, cli.datamodule, made).to_json()
        print_quote(content["scaling"])
    _write(content, out)


def _known(gpu: str) -> Gpu:
    if gpu not in GPUS:
        raise ValueError(f"there is no GPU {gpu!r} in the table{choices(gpu, list(GPUS))}")
    return GPUS[gpu]


def _built(settings: list[str], **trainer: str) -> TrainerCLI:
    """Module, data and trainer of a configuration, the trainer on this machine."""
    changes = _BUILT_HERE | trainer
    return run_trainer([*settings, *(f"--trainer.{name}={value}" for name, value in changes.items())], run=False)


def _turns(cli: TrainerCLI) -> int:
    if cli.trainer.max_steps < 1:
        raise ValueError(
            f"trainer.max_steps is the number of turns of the run and positive: got {cli.trainer.max_steps}"
        )
    return cli.trainer.max_steps


def _plain(made: Plan) -> dict[str, Any]:
    turns = {
        name: dataclasses.asdict(turn) | {"bound": turn.bound, "in_sequence": turn.in_sequence}
        for name, turn in made.turns.items()
    }
    sums = {
        "updates": made.updates,
        "memory_bytes": made.memory_bytes,
        "days": made.days,
        "days_in_sequence": made.days_in_sequence,
    }
    return dataclasses.asdict(made) | {"turns": turns} | sums


def _measured(settings: list[str], turns: int, out: str | None) -> None:
    """Real turns of this process beside the bound by its fastest matrix products."""
    cli = _built(settings, strategy="auto", max_steps=str(turns), limit_val_batches="0", log_every_n_steps="0")
    clock = TurnClock(_UNCOUNTED)
    set_callbacks(cli.trainer, [clock])
    ceiling = measured_ceiling()
    here = Gpu(ceiling, ceiling, ceiling, *[float("inf")] * 3)
    made = plan_run(cli.model, cli.datamodule.batch_size, turns, here, arithmetic="fp32", mfu=1.0)
    with quiet():
        cli.trainer.fit(cli.model, cli.datamodule)
    rows = {
        name: {"flops": made.turns[name].flops, "bound": made.turns[name].bound, "turns": len(seconds)}
        | {"median": statistics.median(seconds), "fastest": min(seconds)}
        for name, seconds in clock.seconds.items()
    }
    content = {"ceiling": ceiling, "threads": torch.get_num_threads(), "batch_size": made.batch_size, "turns": rows}
    print_measured(content)
    _write(content, out)


def _write(content: dict[str, Any], out: str | None) -> None:
    if out is not None:
        write_json(Path(out), content)

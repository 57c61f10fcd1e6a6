"""What a run costs before it is started: FLOPs, bytes and a bound on its time."""

from fdistill.training.planning.dry_turn import TurnCost, dry_turn, forward_flops
from fdistill.training.planning.hardware import GPUS, Gpu, ring_seconds
from fdistill.training.planning.plan import Plan, TurnPlan, plan_run
from fdistill.training.planning.turn_kinds import turns_of_run

__all__ = [
    "GPUS",
    "Gpu",
    "Plan",
    "TurnCost",
    "TurnPlan",
    "dry_turn",
    "forward_flops",
    "plan_run",
    "ring_seconds",
    "turns_of_run",
]

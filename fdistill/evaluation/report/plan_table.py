"""The plan of a run, and measured turns beside their bound, as tables of the terminal."""

from typing import Any

_NOT_COUNTED = "CUDA's context, workspaces and fragmentation"
_UNITS = {"days": 1, "h": 24, "min": 1440}  # of a day
_WIDTH = 14


def print_plan(plan: dict[str, Any]) -> None:
    """Print the content of plan.json: memory by what holds it, turns by kind, the length of the run."""
    hardware, turns = plan["hardware"], plan["turns"]
    print(
        f"{plan['devices']} x {hardware['gpu']}, {hardware['arithmetic']} at {hardware['mfu']:.0%} of "
        f"{hardware['peak'] / 1e12:.0f} TFLOP/s, batch {plan['batch_size']} each"
    )
    print("memory of a GPU, MB (10^6 bytes):")
    for what, size in sorted(plan["memory"].items(), key=lambda item: -item[1]):
        print(f"  {what:<32}{size / 1e6:>12,.1f}")
    fits = "fits" if plan["memory_bytes"] < hardware["memory"] else "does NOT fit: lower data.batch_size"
    print(f"  {'sum':<32}{plan['memory_bytes'] / 1e6:>12,.1f}  of {hardware['memory'] / 1e6:,.0f}: {fits}")
    print(f"  not counted: {_NOT_COUNTED}")
    if plan["on_cpu"]:
        print("memory of the CPU for each GPU, MB:")
        for what, size in sorted(plan["on_cpu"].items(), key=lambda item: -item[1]):
            print(f"  {what:<32}{size / 1e6:>12,.1f}")
    _print_row(
        "turn", ("in the run", "GFLOP", "/ F", "all-reduce MB", "compute ms", "step ms", "reduce ms", "bound ms")
    )
    for name, turn in turns.items():
        times = (turn[what] for what in ("compute", "stepping", "communication", "bound"))
        amounts = (turn["flops"] / 1e9, turn["forwards"], turn["all_reduce_bytes"] / 1e6, *(1e3 * t for t in times))
        _print_row(name, (f"{turn['count']:,}", *map(_short, amounts)))
    forwards = sum(turn["count"] * turn["forwards"] for turn in turns.values()) / plan["updates"]
    what = "a turn" if "tuning" in turns else "an update of the generator"
    print(
        f"{what} costs {forwards:.1f} F (encoder {plan['encoder_share']:.2f} F); the run takes at "
        f"least {_words(plan['days'])}, {_words(plan['days_in_sequence'])} if nothing hides the all-reduce"
    )


def print_measured(measured: dict[str, Any]) -> None:
    """Print the ceiling of this machine, and for each kind of turn its bound beside its fastest and its median.

    The ceiling is that of the fastest product, so the fastest turn is what it bounds on a machine that others use too.
    """
    print(
        f"here: {measured['ceiling'] / 1e9:.1f} GFLOP/s in float32 matrix products, threads: {measured['threads']}, "
        f"batch {measured['batch_size']}"
    )
    _print_row("turn", ("measured", "GFLOP", "bound ms", "fastest ms", "median ms", "bound/fastest"))
    for name, turn in measured["turns"].items():
        share = f"{turn['bound'] / turn['fastest']:.1%}"
        times = (_short(1e3 * turn[what]) for what in ("bound", "fastest", "median"))
        _print_row(name, (f"{turn['turns']:,}", _short(turn["flops"] / 1e9), *times, share))


def print_quote(scaling: dict[str, Any]) -> None:
    """Print what a scaling law predicts of the run, with the range it was measured in, or why it predicts nothing."""
    law, reasons = scaling["law"], "; ".join(scaling["reasons"])
    problem = ", ".join(f"{name} {value}" for name, value in law["problem"].items())
    measured = (f"{name} {low:,.0f} to {high:,.0f}" for name, (low, high) in law["ranges"].items())
    told = f"scaling law ({'; '.join([problem, *measured])})"
    if not scaling["predicted"]:
        print(f"{told} predicts nothing here: {reasons or '; '.join(law['unknown'].values())}")
        return
    numbers = (
        f"{name.replace('_', ' ')} {_short(at['value'])} ({_short(at['low'])} to {_short(at['high'])})"
        for name, at in scaling["predicted"].items()
    )
    print(f"{told}, {scaling['level']:.0%} of single runs: {', '.join(numbers)}")
    for name, reason in law["unknown"].items():
        print(f"  {name.replace('_', ' ')}: {reason}")
    if reasons:
        print(f"  this run has {reasons}, which may move these numbers")
    print(f"  {law['held_out']}")


def _print_row(name: str, cells: tuple[str, ...]) -> None:
    print(f"{name:<8}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells))


def _short(number: float) -> str:
    return f"{number:,.4g}" if number < 1e4 else f"{number:,.0f}"


def _words(days: float) -> str:
    amount, unit = next(((days * n, unit) for unit, n in _UNITS.items() if days * n >= 1), (days * 86_400, "s"))
    return f"{amount:.3g} {unit}"

"""Run a command and watch the memory that it holds: is it flat?

    python tools/watch_memory.py --every 20 -- fdistill fit --config configs/trainer.yaml ...

Prints the resident memory of the command (without its child processes) over time: each fifth of the run its median and
its largest value in MiB, read every --every seconds. Linux alone. The exit status is the command's.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

PARTS = 5


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process; None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmRSS")]
    return int(found[0]) / 1024 if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    process, seen = subprocess.Popen(options.command), []
    while process.poll() is None:
        held = resident_mib(process.pid)
        seen += [] if held is None else [held]
        time.sleep(options.every)
    if len(seen) >= PARTS:
        edges = [round(len(seen) * part / PARTS) for part in range(PARTS + 1)]
        print("| part of the run | median MiB | largest MiB |\n|---|---|---|")
        for part in range(PARTS):
            held = seen[edges[part] : edges[part + 1]]
            print(f"| {part + 1} of {PARTS} | {statistics.median(held):,.0f} | {max(held):,.0f} |")
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()

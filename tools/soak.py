"""A long run with random kills: does it get through, does its memory stay flat, is its end that of a run left alone?

    python tools/soak.py --out runs/soak                                            # 20,000 turns, hours
    python tools/soak.py --out runs/soak --turns 2000 --kills 4 --longest 60        # what docs/reliability.md shows

The run of tools/kill_resume.py, networks small, a checkpoint every 50 turns, killed at random moments and continued.
Once a second the resident memory of the process is read (Linux). Each life is judged by the median of its last quarter
over that of its second quarter, the first one being warm-up; lives of less than --settle seconds of training are not
judged. Writes results.json, and exits with status 1 where the end differs or memory grew by more than 2% in a life.
"""

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from kill_resume import command, compare_runs, kill_at_random, saved_turn, start, wait_for_training

from fdistill.core.atomic_files import write_json

EVERY_N_TURNS, WIDTH, GROWTH = 50, 64, 1.02


class Memory:
    """Resident memory of the processes that it is asked to watch, in MiB, about once a second, by process."""

    def __init__(self) -> None:
        self.lives: dict[int, list[tuple[float, float]]] = {}

    def watch(self, process: int) -> None:
        """Read it, where the last reading is a second old."""
        readings, now = self.lives.setdefault(process, []), time.monotonic()
        if readings and now - readings[-1][0] < 1.0:
            return
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:  # it has just ended
            return
        lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        if lines:
            readings.append((now, int(lines[0].split()[1]) / 1024))

    def judged(self, settle: float) -> list[dict[str, float]]:
        """Second and last quarter of every life that was long enough."""
        found = []
        for readings in self.lives.values():
            mib, quarter = [value for _, value in readings], len(readings) // 4
            if quarter and readings[-1][0] - readings[0][0] >= settle:
                early, late = statistics.median(mib[quarter : 2 * quarter]), statistics.median(mib[-quarter:])
                seconds = readings[-1][0] - readings[0][0]
                found.append({"seconds": seconds, "second_quarter": early, "last_quarter": late, "most": max(mib)})
        return found


def run_to_the_end(arguments: list[str], folder: Path, memory: Memory) -> None:
    process = start(arguments)
    if wait_for_training(process, folder):
        while process.poll() is None:
            memory.watch(process.pid)
            time.sleep(0.1)
    errors = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"the run failed by itself: {errors}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=120.0, help="seconds of training before a kill, at most")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds of training of a life that is judged")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    whole, killed = options.out / "whole", options.out / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(command(whole, options.turns, EVERY_N_TURNS, WIDTH), check=True)
    arguments = command(killed, options.turns, EVERY_N_TURNS, WIDTH)
    chance, memory, lives = random.Random(options.seed), Memory(), []
    for _ in range(options.kills):
        life = kill_at_random(arguments, killed, options.longest, chance, memory.watch)
        if life is None:
            break
        lives.append(life)
        print(life, flush=True)
    run_to_the_end(arguments, killed, memory)
    differ, judged = compare_runs(whole, killed), memory.judged(options.settle)
    growth = max((life["last_quarter"] / life["second_quarter"] for life in judged), default=float("nan"))
    report = {"turns": saved_turn(killed), "kills": [life._asdict() for life in lives], "differ": differ}
    write_json(options.out / "results.json", report | {"memory_mib": judged, "growth": growth})
    print(f"{report['turns']} turns, {len(lives)} kills; {len(differ)} values differ")
    for life in judged:
        print(f"{life['seconds']:.0f} s: {life['second_quarter']:.1f} MiB, then {life['last_quarter']:.1f} MiB")
    return int(bool(differ) or not growth <= GROWTH)


if __name__ == "__main__":
    sys.exit(main())

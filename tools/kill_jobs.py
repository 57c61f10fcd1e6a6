"""Kill the worker of the queue, the run, or both at random moments, and hold the run's end against one left alone.

    python tools/kill_jobs.py --out runs/kill_jobs

The run is that of tools/kill_resume.py. A run is killed up to `--longest` seconds after training began, a worker at any
moment of the run, its start too; the tool is the supervisor that starts the next worker. Meanwhile the processes of the
run are counted every 20 ms: two at once would be two writers. Then `--queued` runs of `true` go through the queue, and
the worker's resident memory is read after each. Writes results.json, and exits with status 1 where anything differs, is
lost or has two writers.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from kill_resume import command, compare_runs, saved_turn

from fdistill.core.atomic_files import write_json
from fdistill.serving.jobs import Job, Jobs
from fdistill.serving.jobs.home import group_in, is_locked
from fdistill.serving.jobs.local import Local

VICTIMS = ("worker", "run", "both")
LIVE = ("queued", "running")


class Supervisor:
    """A queue without a worker of its own, and the worker that is started anew each time it dies."""

    def __init__(self, home: Path) -> None:
        Local.start_worker = lambda self: None  # type: ignore[method-assign]
        self.jobs, self._home = Jobs(home), home
        self._worker: subprocess.Popen | None = None

    def submit(self, name: str, arguments: list[str]) -> None:
        """Queue a command."""
        folder = self._home / name
        self.jobs.submit(Job(name, str(folder.absolute()), os.getcwd(), arguments))

    def keep(self) -> int:
        """See that there is a worker; returns its process."""
        if self._worker is None or self._worker.poll() is not None:
            asked = [sys.executable, "-m", "fdistill", "jobs", "--work", "--home", str(self._home)]
            self._worker = subprocess.Popen(asked, start_new_session=True)
        return self._worker.pid

    def group(self, name: str) -> int | None:
        """The processes of a run, where it has any."""
        lock = self.jobs.home.lock(name)
        return group_in(lock) if is_locked(lock) else None

    def kill(self, victim: str, name: str) -> None:
        """SIGKILL at once."""
        if victim != "worker":
            os.killpg(self.group(name), signal.SIGKILL)
        if victim != "run":
            os.kill(self.keep(), signal.SIGKILL)
            self._worker.wait()


class Writers(threading.Thread):
    """Counts the processes that train in a folder, for as long as the tool lives."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._mark, self.most, self.seen = f"--trainer.default_root_dir={folder}".encode(), 0, set()

    def run(self) -> None:
        while True:
            now = {pid for pid in os.listdir("/proc") if pid.isdigit() and self._trains(pid)}
            self.most, self.seen = max(self.most, len(now)), self.seen | now
            time.sleep(0.02)

    def _trains(self, pid: str) -> bool:
        with contextlib.suppress(OSError):
            return self._mark in Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        return False


def wait_for_training(supervisor: Supervisor, folder: Path) -> bool:
    """Wait until a life of the run has written config.yaml, as each does when training begins; False where it ended."""
    config, lock = folder / "config.yaml", supervisor.jobs.home.lock(folder.name)
    while (state := supervisor.jobs.status(folder.name).state) in LIVE:
        supervisor.keep()
        if state == "running" and config.is_file() and config.stat().st_mtime_ns > lock.stat().st_mtime_ns:
            return True  # the lock got its number when this life began
        time.sleep(0.02)
    return False


def killed_run(options: argparse.Namespace, home: Path) -> dict:
    """What happened to the run that was killed."""
    folder, chance, kills, given_up = home / "killed", random.Random(options.seed), [], 0
    supervisor, writers = Supervisor(home), Writers(folder)
    writers.start()
    supervisor.submit("killed", command(folder, options.turns, 2, 128))
    while len(kills) < options.kills:
        victim, seconds = chance.choice(VICTIMS), chance.uniform(0.0, options.longest)
        is_training = victim == "worker" or wait_for_training(supervisor, folder)
        supervisor.keep()
        time.sleep(seconds)
        if is_training and (victim == "worker" or supervisor.group("killed") is not None):
            supervisor.kill(victim, "killed")
            kills.append({"victim": victim, "seconds": round(seconds, 2), "saved_turn": saved_turn(folder)})
            print(kills[-1], flush=True)
        state = supervisor.jobs.status("killed").state
        if state == "failed":  # killed three times without having saved
            supervisor.jobs.resume("killed")
            given_up += 1
        elif state not in LIVE:
            raise SystemExit(f"the run ended after {len(kills)} kills: give more --turns or a smaller --longest")
    while (state := supervisor.jobs.status("killed").state) in LIVE:
        supervisor.keep()
        time.sleep(0.5)
    found = {"state": state, "given_up": given_up, "most_writers": writers.most, "lives": len(writers.seen)}
    return found | {"kills": kills}


def queued_runs(count: int, home: Path) -> dict:
    """Resident memory of the worker, MiB, over many runs that do nothing."""
    supervisor = Supervisor(home)
    for index in range(count):
        supervisor.submit(f"run{index}", ["true"])
    status, memory = Path("/proc", str(supervisor.keep()), "status"), []
    while (done := sum(run.state == "done" for run in supervisor.jobs.all())) < count:
        rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
        memory.append((done, int(rows["VmRSS"].split()[0]) / 1024))
        time.sleep(1.0)
    quarters = [[m for d, m in memory if q * count <= 4 * d < (q + 1) * count] for q in range(4)]
    return {"done": done, "memory_of_each_quarter": [round(statistics.median(q), 1) if q else None for q in quarters]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--longest", type=float, default=2.0, help="seconds before a kill, at most")
    parser.add_argument("--queued", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    home = options.out.absolute()
    found = killed_run(options, home) if options.kills else {}
    if found:
        subprocess.run(command(home / "whole", options.turns, 2, 128), check=True, stdout=subprocess.DEVNULL)
        found["differ"] = compare_runs(home / "whole", home / "killed")
        print(f"{found['state']}; {len(found['differ'])} values differ; most writers at once: {found['most_writers']}")
    found |= queued_runs(options.queued, home / "many") if options.queued else {}
    write_json(home / "results.json", found)
    print({name: value for name, value in found.items() if name != "kills"})
    wrong = found.get("differ") or found.get("most_writers", 1) != 1 or found.get("state", "done") != "done"
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

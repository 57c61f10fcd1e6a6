"""A run on several machines of a Ray cluster: on each the processes that torchrun would start, as it would.

    python -m fdistill.serving.jobs.ray_nodes MACHINES DEVICES cpu|gpu LOG COMMAND...

Ray Train would run the training in a thread of its own workers, where it could not save at SIGTERM.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

_LOG = logging.getLogger(__name__)
_POLL = 0.5  # s
_RUN_ID = "TORCHELASTIC_RUN_ID"  # by which Lightning knows that its processes are started from outside


class Machine:
    """The processes of one machine; a Ray actor, two of whose methods run at once."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_told = False
        self._lock = threading.Lock()

    def place(self) -> tuple[str, int]:
        """An address of this machine and a free port, where the processes of all machines meet."""
        from ray.util import get_node_ip_address

        with socket.socket() as probe:
            probe.bind(("", 0))
            return get_node_ip_address(), probe.getsockname()[1]

    def run(self, command: Sequence[str], cwd: str, log: str, shared: dict[str, str], node: int, devices: int) -> int:
        """Start the processes and wait for them; their first exit status that is not 0. One that fails ends all."""
        own = {"GROUP_RANK": str(node), "LOCAL_WORLD_SIZE": str(devices)}
        with self._lock, open(log, "ab") as file:
            for local in range(0 if self._is_told else devices):
                ranks = {"LOCAL_RANK": str(local), "RANK": str(node * devices + local)}
                environment = {**os.environ, **shared, **own, **ranks}
                self._processes.append(subprocess.Popen(command, cwd=cwd, env=environment, stdout=file, stderr=file))
        first = 0 if self._processes else 128 + signal.SIGTERM
        while None in (codes := [each.poll() for each in self._processes]) or (not first and any(codes)):
            if not first and any(codes):
                first = next(code for code in codes if code)
                self.stop()
            time.sleep(_POLL)
        return first if first >= 0 else 128 - first  # as a shell tells the signal

    def stop(self) -> None:
        """SIGTERM, once, to those that run, which save."""
        with self._lock:
            for each in [] if self._is_told else self._processes:
                if each.poll() is None:
                    each.terminate()
            self._is_told = True


def run(nodes: int, devices: int, kind: str, log: str, command: Sequence[str]) -> int:
    """Run the command on so many machines of the cluster, as soon as they are free; the exit status."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    told: list[int] = []
    ray.init()
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    resources: dict[str, float] = {"CPU": float(devices)} | ({"GPU": float(devices)} if kind == "gpu" else {})
    group = placement_group([resources] * nodes, strategy="SPREAD")
    while not group.wait(_POLL):
        if told:
            return 128 + told[0]
    machines: list[Any] = [
        ray.remote(Machine)
        .options(
            num_cpus=devices,
            num_gpus=devices if kind == "gpu" else 0,
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, node),
        )
        .remote()
        for node in range(nodes)
    ]
    address, port = ray.get(machines[0].place.remote())
    shared = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(nodes * devices), _RUN_ID: str(port)}
    given = (list(command), os.getcwd(), log, shared)
    waiting = [machine.run.remote(*given, node, devices) for node, machine in enumerate(machines)]
    codes: list[int] = []
    is_told = False
    while waiting:
        done, waiting = ray.wait(waiting, timeout=_POLL)
        for each in done:
            try:
                codes.append(ray.get(each))
            except ray.exceptions.RayError as error:
                _LOG.error("a machine is gone: %s", error)
                codes.append(1)
        if not is_told and (told or any(codes)):
            is_told = True
            for machine in machines:
                machine.stop.remote()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))

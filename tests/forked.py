"""Work in a copy of the test's own process, which may be killed, limited or left alone; costs no imports."""

import os
import resource
import signal
import socket
import sys
import time
import traceback


def fork(work, output, **environment):
    """Begin `work` in a child whose prints go to a file; returns its process id."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        os.environ.update(environment)
        with output.open("w") as file:
            sys.stdout = sys.stderr = file
            status = work() or 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        output.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def ended(processes, seconds=60):
    """Exit statuses of children, negative for signals; what still runs after some seconds is killed and None."""
    statuses, deadline = dict.fromkeys(processes), time.monotonic() + seconds
    while None in statuses.values() and time.monotonic() < deadline:
        for process in [p for p, status in statuses.items() if status is None]:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                statuses[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for process in [p for p, status in statuses.items() if status is None]:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return [statuses[process] for process in processes]


def run_forked(work, output, **environment):
    """Exit status of `work` in a child."""
    return ended([fork(work, output, **environment)])[0]


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork_ranks(work, folder, ranks=2):
    """Begin `work(rank)` in several children that find each other as processes of torchrun do; returns their ids."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [
        fork(lambda rank=rank: work(rank), folder / f"rank{rank}.log", **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(ranks)
    ]


def limit_file_size(size):
    """Let every file of this process be full after so many bytes, like a disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

"""What becomes of a run in the queue: its states, one to a device, stopped, killed, resumed; commands of the shell."""

import os
import signal
import threading
import time

import pytest

pytest.importorskip("dbos")

from fdistill.serving.jobs import Job, Jobs, jobs, worker
from fdistill.serving.jobs.home import try_lock
from fdistill.serving.jobs.local import Local

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def no_worker_of_its_own(monkeypatch):
    monkeypatch.setattr(Local, "start_worker", lambda self: None)
    monkeypatch.setattr(worker, "_NEXT", 0.05)
    monkeypatch.setattr(worker, "_POLL", 0.05)


class Queue:
    """A queue whose runs are commands of the shell, each in a folder of its name."""

    def __init__(self, path):
        self.path, self.jobs = path, Jobs(path)

    def submit(self, name, script, devices=1):
        folder = self.path / name
        return self.jobs.submit(Job(name, str(folder), str(self.path), ["sh", "-c", script], devices=devices))

    def work(self, *devices):
        worker.Worker(self.jobs.home, devices or [""]).work()

    def meanwhile(self, *steps):
        """Work, and at the same time do the steps in turn."""
        thread = threading.Thread(target=lambda: [step() for step in steps])
        thread.start()
        self.work()
        thread.join()

    def wait_for(self, name, state):
        while self.jobs.status(name).state != state:
            time.sleep(0.05)

    def outcome(self, name):
        found = self.jobs.status(name)
        return found.state, found.code

    def lines(self, name):
        return (self.path / name).read_text().split()


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "home")


def test_one_device_runs_one_after_another_and_says_how_each_ended(queue):
    for name, status in (("a", 0), ("b", 0), ("c", 3)):
        assert queue.submit(name, f"echo begin >> order; sleep .1; echo end >> order; exit {status}").state == "queued"
    queue.work()
    assert queue.lines("order") == ["begin", "end"] * 3
    assert [queue.outcome(name) for name in "abc"] == [("done", 0), ("done", 0), ("failed", 3)]


def test_devices_run_at_once_and_a_run_may_ask_for_several(queue):
    script = "echo $CUDA_VISIBLE_DEVICES > {0}.devices; touch {0}.here; while ! test -e {1}.here; do sleep .02; done"
    queue.submit("a", script.format("a", "b"))
    queue.submit("b", script.format("b", "a"))  # each waits for the other
    queue.submit("both", "echo $CUDA_VISIBLE_DEVICES > both.devices", devices=0)
    queue.work("4", "7")
    assert sorted(queue.lines("a.devices") + queue.lines("b.devices")) == ["4", "7"]
    assert queue.lines("both.devices") == ["4,7"]


def test_a_run_that_something_killed_goes_on_and_one_that_only_dies_fails(queue):
    once = "echo life >> {0}.lives; test -e {0}.died || {{ touch {0}.died; {1}; }}"
    queue.submit("killed", once.format("killed", "kill -9 $$"))
    queue.submit("preempted", once.format("preempted", "exit 143"))
    queue.submit("doomed", "echo life >> doomed.lives; kill -9 $$")
    queue.submit(
        "slow",
        "mkdir -p slow/checkpoints; echo >> n; date +%N > slow/checkpoints/last.ckpt; "
        "test $(wc -l < n) -gt 5 || kill -9 $$",
    )
    queue.work()
    assert queue.outcome("killed") == queue.outcome("preempted") == queue.outcome("slow") == ("done", 0)
    assert len(queue.lines("killed.lives")) == len(queue.lines("preempted.lives")) == 2
    assert queue.outcome("doomed") == ("failed", -signal.SIGKILL)
    assert len(queue.lines("doomed.lives")) == 3


def test_stop_waits_for_what_the_run_saves_and_resume_continues_it(queue):
    save = "trap 'sleep .5; echo saved > saved; exit 143' TERM; test -e saved || { touch here; sleep 60 & wait; }"
    queue.submit("run", save)

    def stop():
        queue.wait_for("run", "running")
        while not (queue.path / "here").exists():
            time.sleep(0.05)
        queue.jobs.stop("run")
        assert (queue.path / "saved").exists()

    queue.meanwhile(stop)
    assert queue.outcome("run") == ("stopped", 143)
    queue.jobs.resume("run")
    assert queue.outcome("run") == ("queued", None)
    queue.work()
    assert queue.outcome("run") == ("done", 0)


def test_a_queued_run_that_is_stopped_never_starts(queue):
    queue.submit("run", "touch started")
    queue.jobs.stop("run")
    queue.work()
    assert queue.outcome("run") == ("stopped", None)
    assert not (queue.path / "started").exists()


def test_nothing_starts_while_processes_of_an_earlier_worker_hold_the_run_or_the_device(queue):
    queue.submit("run", "touch started")
    for path in (queue.jobs.home.lock("run"), queue.jobs.home.device_lock(0)):
        held = try_lock(path)

        def let_go(held=held):
            time.sleep(0.5)
            assert not (queue.path / "started").exists()
            held.close()

        queue.meanwhile(let_go)
        (queue.path / "started").unlink()
        queue.submit("again", "touch started") if path.name == "run.lock" else None


def test_a_worker_that_is_told_to_end_stops_the_run_and_the_next_one_continues_it(queue):
    queue.submit("run", "trap 'exit 143' TERM; test -e here && exit 0; touch here; sleep 60 & wait")

    def end():
        while not (queue.path / "here").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    queue.meanwhile(end)
    assert queue.jobs.status("run").state == "queued"
    queue.work()
    assert queue.outcome("run") == ("done", 0)


def test_a_worker_that_is_told_to_end_while_a_run_starts_stops_it(queue, monkeypatch):
    start = worker.Worker._start

    def start_and_leave(self, *given):
        process = start(self, *given)
        self._leave()
        return process

    queue.submit("run", "test -e here && exit 0; touch here; sleep 30")
    with monkeypatch.context() as patched:
        patched.setattr(worker.Worker, "_start", start_and_leave)
        queue.work()
    assert queue.jobs.status("run").state == "queued"
    assert Local(queue.jobs.home).noted(queue.jobs.home.read("run"))["code"] == -signal.SIGTERM
    (queue.path / "here").touch()
    queue.work()
    assert queue.outcome("run") == ("done", 0)


def test_a_log_is_handed_over_to_its_end(queue, monkeypatch):
    monkeypatch.setattr(jobs, "_POLL", 0.05)
    queue.submit("run", "echo one; echo two >&2; printf '\\303'; sleep .3; printf '\\251\\n'")  # a letter by halves
    said = []
    queue.meanwhile(lambda: queue.jobs.follow("run", said.append, until_end=True))
    assert "".join(said).split() == ["one", "two", "é"]


def test_what_cannot_be_is_refused(queue):
    queue.submit("run", "true")
    for wrong, name in ((queue.jobs.status, "rum"), (queue.jobs.stop, "../run"), (queue.jobs.resume, "run")):
        with pytest.raises(ValueError, match="run"):
            wrong(name)
    with pytest.raises(ValueError, match="name"):
        queue.submit("run", "true")
    with pytest.raises(ValueError, match="folder"):
        queue.jobs.submit(Job("other", str(queue.path / "run"), str(queue.path), ["true"]))
    with pytest.raises(ValueError, match="local, ray"):
        queue.jobs.submit(Job("other", str(queue.path / "other"), str(queue.path), ["true"], engine="cloud"))
    assert [run.name for run in queue.jobs.all()] == ["run"]
    queue.work()
    with pytest.raises(ValueError, match="done"):
        queue.jobs.stop("run")
    with pytest.raises(ValueError, match="max_steps"):
        queue.jobs.resume("run")
    (queue.path / "run" / "job.log").unlink()
    (queue.path / "run").rmdir()
    assert queue.submit("run", "true").state == "queued"  # its folder is gone: the name is free


def test_a_name_that_is_taken_keeps_its_configuration(queue):
    mine = Job("run", str(queue.path / "run"), str(queue.path), ["true"])
    queue.jobs.submit(mine, "a: 1")
    with pytest.raises(ValueError, match="name"):
        queue.jobs.submit(mine, "a: 2")
    assert queue.jobs.home.file("run", "yaml").read_text() == "a: 1"


def test_a_queue_that_is_none_is_said(tmp_path):
    (tmp_path / "jobs.sqlite").write_bytes(b"\0garbage" * 100)
    with pytest.raises(ValueError, match="SQLite"):
        Jobs(tmp_path).submit(Job("run", str(tmp_path / "run"), str(tmp_path), ["true"]))

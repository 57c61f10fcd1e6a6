"""The worker's process: what opens it, what it refuses in one line, and how both sides end."""

import signal
import subprocess
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import httpx
import pytest
from cli_runs import fdistill, one_error_line
from live import accepted, live
from services import export, serving, working

from fdistill.serving.generators import Generator
from fdistill.serving.request import RequestError
from fdistill.serving.settings import How

ASKED = (None, "3", None, 2, 7, "png")


@pytest.mark.parametrize(
    ("how", "word"), [(How(2, device="cuda:77"), "device"), (How(2, device="tpu?"), "device"), (How(2), "nothing")]
)
def test_what_cannot_be_served_is_one_line(tmp_path, how, word):
    with working() as (worker, _), pytest.raises(ValueError, match=word) as wrong:
        worker.open([str(tmp_path / "nothing")], how)
    assert "\n" not in str(wrong.value)


def test_pictures_of_a_call_that_was_left_are_not_made(folder):
    with serving(folder, start=False) as service:
        left, stays = (service.worker.call("make", *ASKED) for _ in range(2))
        assert left.cancel()
        with pytest.raises(CancelledError):
            left.result()
        service.worker.call("state").result(60)  # calls are read in their order
        service.batcher.start()
        body, seconds = stays.result(60)
        assert body.count(b"b64_json") == 2
        assert seconds > 0
        assert (service.batcher.dropped, service.batcher.made) == (2, 2)


def test_a_dead_worker_answers_who_waits_and_who_comes_and_says_so(folder):
    died = threading.Event()
    with working(died.set) as (worker, workshop):
        worker.open([str(folder)], How(2))
        workshop.batcher.close()  # makes nothing any more
        waiting = worker.call("make", *ASKED)
        workshop._send = lambda *_: None
        worker._send(None, "end", ())  # as if it had ended by itself
        for call in (waiting, worker.call("make", *ASKED)):
            with pytest.raises(RequestError, match="another") as refused:
                call.result(60)
            assert refused.value.status == 503
        assert died.wait(60)
        assert not worker.alive
        assert "exit status" in worker.error


def test_an_error_while_files_are_written_is_answered(folder, monkeypatch):
    monkeypatch.setattr("fdistill.serving.workshop.as_json", lambda *_: {}["none"])
    with serving(folder) as service, pytest.raises(RequestError) as refused:
        service.worker.call("make", *ASKED).result(60)
    assert refused.value.status == 500


def test_a_batch_that_fails_is_answered_and_the_next_is_made(folder, monkeypatch):
    make, errors = Generator.make, [ValueError("too large")]

    def broken(self, *given):
        if errors:
            raise errors.pop()
        return make(self, *given)

    with serving(folder) as service:
        monkeypatch.setattr(Generator, "make", broken)
        with pytest.raises(RequestError, match="too large") as refused:
            service.worker.call("make", *ASKED).result(60)
        assert refused.value.status == 500
        assert service.worker.call("make", *ASKED).result(60)[0].count(b"b64_json") == 2


@pytest.mark.slow
def test_what_only_the_worker_finds_is_one_line_too(folder, tmp_path):
    for arguments, word in (
        ([], "at least one"),
        ([tmp_path / "nothing"], "nothing"),
        ([folder, "--device", "cuda:77"], "device"),
        ([folder, "--decoder", "vae"], "decoder"),
    ):
        assert word in one_error_line(fdistill("serve", *arguments, "--port", "0"))


def children(process):
    return pytest.importorskip("psutil").Process(process.pid).children()


def pictures(place, **more):
    return httpx.post(f"{place}/v1/images/generations", json={"prompt": "3"} | more, timeout=60)


@pytest.mark.slow
def test_what_is_imported_is_imported_by_the_worker_too(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from fdistill.models.networks import SmallUNet\nclass Mine(SmallUNet):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from my_networks import Mine

    folder = export(tmp_path / "mine", network=Mine(widths=[4, 8], num_classes=10, channels=1))
    assert "Mine" in one_error_line(fdistill("serve", folder, "--port", "0"))
    with live(folder, "--import", "my_networks") as (_, place):
        assert pictures(place).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGKILL]])
def test_a_killed_worker_ends_the_service_and_everyone_is_answered(folder, signals):
    with live(folder, "--max_batch", "1") as (process, place), ThreadPoolExecutor(8) as pool:
        (worker,) = children(process)
        answers = [pool.submit(pictures, place, n=64) for _ in range(8)]
        while accepted(place) < 8 * 64:
            time.sleep(0.01)
        for each in signals:
            assert worker.is_running()
            worker.send_signal(each)
            time.sleep(0.1)
        begin = time.monotonic()
        statuses = [answer.result().status_code for answer in answers]
        assert process.wait(60) == 1
        assert time.monotonic() - begin < 5
        assert set(statuses) <= {200, 503}
        assert 503 in statuses
        assert "the worker ended with exit status -9" in process.stderr.read()


@pytest.mark.slow
def test_a_killed_service_leaves_no_worker(folder):
    with live(folder) as (process, _):
        (worker,) = children(process)
        process.kill()
        process.wait()
        worker.wait(5)  # raises where it still runs
        assert not worker.is_running()
    starting = subprocess.Popen(process.args, stderr=subprocess.DEVNULL)
    while not (found := children(starting)):
        time.sleep(0.01)
    starting.kill()  # while it loads
    starting.wait()
    found[0].wait(30)
    assert not found[0].is_running()

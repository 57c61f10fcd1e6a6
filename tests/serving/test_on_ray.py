"""The service on Ray: what it refuses, and two replicas of which one is killed while requests come."""

import collections
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from cli_runs import fdistill, one_error_line
from live import live

CLIENTS = 12


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--on", "ray", "--jobs", "runs", "--configs", "."], "--jobs"),
        (["--on", "moon"], "here or ray"),
        (["--replicas", "2"], "--on ray"),
    ],
)
def test_what_ray_does_not_do_is_said(folder, arguments, word):
    assert word in one_error_line(fdistill("serve", folder, "--port", "0", *arguments))


def test_without_ray_its_extra_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'fdistill[serve,ray]'" in one_error_line(fdistill("serve", folder, "--on", "ray"))


def test_what_is_wrong_is_said_before_a_cluster_starts(folder):
    pytest.importorskip("ray.serve")
    on = ["--on", "ray", "--port", "0"]
    assert "token" in one_error_line(fdistill("serve", folder, *on, "--host", "0.0.0.0"))
    assert "--device cpu" in one_error_line(fdistill("serve", folder, *on, "--device", "cpu:0"))
    assert "positive" in one_error_line(fdistill("serve", folder, *on, "--replicas", "0"))


@pytest.mark.slow
def test_a_killed_replica_loses_its_own_requests_alone(folder, tmp_path):
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray.serve")
    assert "nothing" in one_error_line(fdistill("serve", tmp_path / "nothing", "--on", "ray", "--port", "0"))

    def ask(place, seed):
        body = {"prompt": "3", "n": 2, "seed": seed % 50}
        try:
            answer = httpx.post(f"{place}/v1/images/generations", json=body, timeout=60)
        except httpx.TransportError as error:
            return seed, type(error).__name__, None
        return seed, answer.status_code, answer.json()["data"] if answer.status_code == 200 else None

    with live(folder, "--on", "ray", "--replicas", "2") as (process, place), ThreadPoolExecutor(CLIENTS) as pool:

        def replicas():
            found = psutil.Process(process.pid).children(recursive=True)
            return [each for each in found if each.name().startswith("ray::ServeRep")]

        expected = [data for _, _, data in map(lambda seed: ask(place, seed), range(50))]
        assert None not in expected
        first, ended, seeds, found = replicas(), threading.Event(), iter(range(10**6)), []

        def client():
            while not ended.is_set():
                found.append((time.monotonic(), ask(place, next(seeds))))

        clients = [pool.submit(client) for _ in range(CLIENTS)]
        time.sleep(3)
        os.kill(first[0].pid, signal.SIGKILL)
        killed = time.monotonic()
        deadline = killed + 120
        while len({each.pid for each in replicas()} - {first[0].pid}) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        again = time.monotonic() - killed
        time.sleep(5)
        ended.set()
        for each in clients:
            each.result()
        lost = [(when - killed, status) for when, (_, status, _) in found if status != 200]
        counts = collections.Counter(status for _, (_, status, _) in found)
        print(f"\n{dict(counts)}; lost, seconds after the kill: {lost}; two replicas again after {again:.1f} s")
        assert len(first) == len(replicas()) == 2
        assert len(lost) <= CLIENTS  # at most what was asked for at that moment
        assert all(data == expected[seed % 50] for _, (seed, status, data) in found if status == 200)
        assert all(-1 < when < 10 for when, _ in lost)
        late = [status for when, (_, status, _) in found if when > killed + again]
        assert late
        assert set(late) == {200}
        waiting = [pool.submit(ask, place, seed) for seed in range(60)]
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        drained = collections.Counter(each.result()[1] for each in waiting)
        print(f"SIGTERM with 60 asked: {dict(drained)}, exit status {process.wait(90)}")
        assert process.returncode == 0
        assert drained[200] >= CLIENTS  # those that were in flight; later ones find no service

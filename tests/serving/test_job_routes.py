"""Runs over HTTP: only configurations of one folder, only numbers beside them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("dbos")
pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from fdistill.serving.jobs import Job, Jobs
from fdistill.serving.jobs.local import Local
from fdistill.serving.jobs.routes import router
from fdistill.serving.request import RequestError

pytestmark = pytest.mark.system


class NoneServed:
    async def ask(self, name):
        return {"added": []}


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(Local, "start_worker", lambda self: None)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text("trainer: {max_steps: 3}\n")
    (tmp_path / "secret.yaml").write_text("trainer: {max_steps: 3}\n")
    (tmp_path / "configs" / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    application = FastAPI(exception_handlers={RequestError: lambda _, e: JSONResponse(e.as_json(), e.status)})
    application.include_router(router(tmp_path / "home", tmp_path / "configs", NoneServed()))
    return TestClient(application)


@pytest.mark.parametrize(
    "configs", [["../secret"], ["link"], ["{}/secret.yaml"], ["tiny", "."], ["\0"], [], "tiny", [3], None]
)
def test_only_files_of_the_folder_are_run(client, tmp_path, configs):
    if isinstance(configs, list):
        configs = [each.format(tmp_path) if isinstance(each, str) else each for each in configs]
    answer = client.post("/v1/runs", json={"name": "run", "configs": configs})
    assert answer.status_code == 400
    assert "config" in answer.json()["error"]["message"]
    assert client.get("/v1/runs").json()["data"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"settings": {"model.class_path": "os.system"}},
        {"settings": {"trainer.callbacks": [1]}},
        {"settings": {"config": 1}},
        {"name": "../run"},
        {"name": 3},
        {"command": "true"},
        {"settings": {"trainer.default_root_dir": "/"}},
    ],
)
def test_settings_are_numbers_and_names_are_names(client, wrong):
    answer = client.post("/v1/runs", json={"name": "run", "configs": ["tiny"]} | wrong)
    assert answer.status_code == 400
    assert client.get("/v1/runs").json()["data"] == []


def test_the_folder_of_a_run_is_that_of_the_queue(client):
    asked = {"name": "run", "configs": ["tiny"], "settings": {"trainer.default_root_dir": 5}}
    answer = client.post("/v1/runs", json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("settings")


def test_a_run_is_listed_stopped_and_resumed(client, tmp_path):
    Jobs(tmp_path / "home").submit(Job("run", str(tmp_path / "run"), str(tmp_path), ["true"]))
    (listed,) = client.get("/v1/runs").json()["data"]
    assert (listed["name"], listed["state"]) == ("run", "queued")
    assert client.get("/v1/runs/run").json()["saved_step"] is None
    for action, state in (("stop", "stopped"), ("resume", "queued")):
        answer = client.post(f"/v1/runs/run/{action}")
        assert (answer.status_code, answer.json()["state"]) == (202, state)
    assert client.post("/v1/runs/run/resume").status_code == 400  # it waits already
    assert {client.get("/v1/runs/rum").status_code, client.post("/v1/runs/rum/stop").status_code} == {404}


def test_of_resumes_at_once_one_is_done(client, tmp_path):
    home = tmp_path / "home"
    Jobs(home).submit(Job("run", str(tmp_path / "run"), str(tmp_path), ["true"]))
    Jobs(home).stop("run")
    at_once = threading.Barrier(4)

    def resume(jobs):
        at_once.wait()
        try:
            return jobs.resume("run").state
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(resume, [Jobs(home) for _ in range(4)]))
    assert done.count("queued") == 1
    assert sum("run is queued" in each for each in done) == 3
    assert client.get("/v1/runs/run").json()["state"] == "queued"


@pytest.mark.parametrize(("kind", "size", "status"), [("text/plain", 0, 415), ("application/json", 70_000, 413)])
def test_a_body_is_json_and_small(client, kind, size, status):
    content = b'{"name": "run", "configs": ["absent"]' + b" " * size + b"}"
    assert client.post("/v1/runs", content=content, headers={"content-type": kind}).status_code == status


def test_a_page_of_another_site_stops_nothing(client, tmp_path):
    Jobs(tmp_path / "home").submit(Job("run", str(tmp_path / "run"), str(tmp_path), ["true"]))
    for origin in ("https://example.org", "null", "http://[", "http://testserver.example.org"):
        assert client.post("/v1/runs/run/stop", headers={"Origin": origin}).status_code == 403
    assert client.get("/v1/runs/run").json()["state"] == "queued"
    assert client.post("/v1/runs/run/stop", headers={"Origin": "http://testserver"}).status_code == 202

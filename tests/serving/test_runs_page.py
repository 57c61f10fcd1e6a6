"""The page of runs: there with a home alone; what a run looks like; its checkpoint as a further generator."""

import base64
import functools
import io
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("dbos")
pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from live import live, visited
from PIL import Image
from services import serving

from fdistill.io.checkpoints import AVERAGE, RECORD, model_record, model_weights
from fdistill.io.load import load_model
from fdistill.serving.app import create_app
from fdistill.serving.jobs import Job, Jobs
from fdistill.serving.jobs.local import Local
from fdistill.serving.jobs.routes import router

pytestmark = pytest.mark.system

REASON = "recall lies below its band"


def queued(home, name, folder=None, steps=400):
    """A run that waits, with curves, an alarm and two grids in its folder."""
    folder = folder or home / name
    job = Job(name, str(folder), str(home), ["true"], max_steps=steps)
    Jobs(home).submit(job)
    lines = [
        {"step": step, "loss/student": 1 / (1 + step), "collapse/alarm": step >= 100} for step in range(0, 200, 20)
    ]
    lines += [{"step": 180, "collapse/reason": REASON}, {"step": 180, "seeds/alarm": 0.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "samples").mkdir()
    for turn, shade in ((90, 10), (180, 200)):
        Image.new("L", (40, 30), shade).save(folder / "samples" / f"{turn:07d}.png")
    return job


def save(job, exported):
    """The checkpoint that a training of this model would write."""
    model = load_model(exported)
    weights = {AVERAGE + name: value for name, value in model_weights(model).items()}
    job.checkpoint.parent.mkdir(exist_ok=True)
    torch.save({RECORD: model_record(model), "state_dict": weights, "global_step": 180}, job.checkpoint)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(Local, "start_worker", lambda self: None)
    return tmp_path / "home"


@pytest.fixture
def client(home, folder, tmp_path):
    with serving(folder) as service:
        runs = functools.partial(router, home, tmp_path)
        yield TestClient(create_app(service, runs=runs), base_url="http://localhost")


def test_without_a_home_there_is_no_page_of_runs(folder, client):
    with serving(folder) as service:
        alone = TestClient(create_app(service), base_url="http://localhost")
        assert alone.get("/runs").status_code == 404
        assert 'href="runs"' not in alone.get("/").text
    assert 'href="runs"' in client.get("/").text
    page = client.get("/runs")
    assert page.status_code == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; connect-src 'self'; img-src data:;")


def test_a_run_tells_its_steps_its_alarms_its_newest_grid_and_its_curves(home, client):
    job = queued(home, "run")
    (listed,) = client.get("/v1/runs").json()["data"]
    assert (listed["step"], listed["max_steps"]) == (180, 400)
    found = client.get("/v1/runs/run/look").json()
    assert found["alarms"] == [
        {"name": "collapse", "on": True, "reasons": [[180, REASON]]},
        {"name": "seeds", "on": False, "reasons": []},
    ]
    (grid,) = found["pictures"]
    shown = Image.open(io.BytesIO(base64.b64decode(grid["png"])))
    assert (grid["title"], shown.size, shown.getpixel((0, 0))) == ("samples/0000180.png", (40, 30), 200)
    figures = [figure for section in found["sections"] for figure in section["figures"]]
    assert len(figures) == 3  # of losses, and two alarms
    assert all(Image.open(io.BytesIO(base64.b64decode(figure["png"]))).width > 100 for figure in figures)
    Path(job.folder, "metrics.jsonl").unlink()
    assert client.get("/v1/runs/run/look").json() == {"alarms": [], "pictures": [], "sections": []}


def test_the_checkpoint_of_a_run_is_a_further_generator(home, client, folder):
    job = queued(home, "run")
    refused = client.post("/v1/runs/run/serve")
    assert (refused.status_code, "no checkpoint" in refused.json()["error"]["message"]) == (400, True)
    save(job, folder)
    assert client.post("/v1/runs/run/serve").json() == {"model": "run"}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", "run"]
    asked = [{"prompt": "3", "seed": 1} | more for more in ({"model": "run"}, {"model": "tiny"}, {})]
    first, *others = (client.post("/v1/images/generations", json=each).json()["data"] for each in asked)
    assert others == [first, first]  # the same weights; who names none gets what the service was started with
    job.checkpoint.write_bytes(b"torn")
    answer = client.post("/v1/runs/run/serve")
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]
    assert client.post("/v1/images/generations", json=asked[0]).json()["data"] == first  # the old one stays


def test_a_served_run_is_taken_away_and_what_was_given_stays(home, client, folder):
    save(queued(home, "run"), folder)
    assert client.delete("/v1/runs/run/serve").status_code == 404  # not served yet
    client.post("/v1/runs/run/serve")
    assert client.get("/v1/runs").json()["served"] == ["run"]
    assert client.delete("/v1/runs/run/serve", headers={"Origin": "https://example.org"}).status_code == 403
    assert client.delete("/v1/runs/run/serve").json() == {"model": "run"}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/runs").json()["served"] == []
    assert client.post("/v1/images/generations", json={"prompt": "3", "model": "run"}).status_code == 404
    assert client.delete("/v1/runs/tiny/serve").status_code == 404
    assert client.post("/v1/images/generations", json={"prompt": "3"}).status_code == 200


def test_a_run_takes_no_name_of_a_generator_that_was_given(home, client, folder):
    save(queued(home, "tiny"), folder)
    answer = client.post("/v1/runs/tiny/serve")
    assert (answer.status_code, "already" in answer.json()["error"]["message"]) == (400, True)


def test_wrong_names_are_not_there(home, client):
    queued(home, "run")
    for name in ("rum", "..", "%2e%2e", "run.json", "..%2Frun"):
        assert client.get(f"/v1/runs/{name}/look").status_code == 404
        assert client.post(f"/v1/runs/{name}/serve").status_code == 404
    assert client.post("/v1/runs/run/serve", headers={"Origin": "https://example.org"}).status_code == 403


@pytest.mark.slow
def test_a_person_sees_a_run_stops_it_and_serves_it(home, folder, tmp_path):
    job = queued(home, "run")
    queued(home, "other")
    save(job, folder)
    (tmp_path / "configs").mkdir()
    given = (folder, "--jobs", home, "--configs", tmp_path / "configs")
    with live(*given) as (_, place), visited(place) as (page, wrong):
        page.click("text=training runs")
        page.click("#runs a[href='#run']")
        page.wait_for_selector("#curves img")
        assert page.locator("tr.chosen progress").evaluate("bar => [bar.value, bar.max]") == [180, 400]
        assert page.locator("#pictures img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 40
        assert REASON in page.inner_text("#alarms .wrong")
        page.click("[data-does=stop]")
        page.wait_for_selector("tr.chosen:has-text('stopped')")
        assert page.is_disabled("[data-does=stop]")
        page.click("[data-does=serve]")
        page.wait_for_selector("#said a")
        page.screenshot(path=tmp_path / "runs.png", full_page=True)
        page.click("#said a")
        page.wait_for_selector("#prompt")
        assert page.input_value("#model") == "run"
        page.go_back()
        page.click("[data-does=unserve]")
        page.wait_for_selector("#said:has-text('served no more')")
        assert page.is_disabled("[data-does=unserve]")
        assert wrong == []

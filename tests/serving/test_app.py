"""The application without a socket: OpenAI's API, refusals in one line, a full queue, clients that leave, the token."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
import torch
from httpx import BasicAuth
from PIL import Image
from services import client, export, serving

from fdistill.core.random import generator_for
from fdistill.sampling.pictures import image_grid, to_pixels
from fdistill.serving.app import create_app

IMAGES = "/v1/images/generations"
TOKEN = "a-token-of-many-letters"


@pytest.fixture(scope="module")
def service(folder):
    with serving(folder) as made:
        yield made


def asked(service, *requests, **how):
    """Answers to (method, path, keywords) that come at once."""

    async def run():
        async with client(service, **how) as http:
            return await asyncio.gather(*(http.request(method, path, **more) for method, path, more in requests))

    return asyncio.run(run())


def post(service, **body):
    return asked(service, ("POST", IMAGES, {"json": body}))[0]


def get(service, path, **how):
    return asked(service, ("GET", path, {}), **how)[0]


def pixels(answer):
    return [np.array(Image.open(io.BytesIO(base64.b64decode(each["b64_json"])))) for each in answer.json()["data"]]


def samples(service, seed, label, n):
    """What the model makes of the noise of each (seed, index)."""
    generator = service.workshop.shelf.get(None)
    noise = [generator.model.latents(1, generator_for(seed, index)) for index in range(n)]
    padded = torch.cat([*noise, *[noise[0]] * (generator.size - n)])
    return generator.model.sample(padded, torch.full((generator.size,), label))[:n]


def test_images_are_those_of_seed_and_class(service):
    answer = post(service, prompt="three", n=5, seed=7)
    assert answer.status_code == 200
    np.testing.assert_array_equal(pixels(answer), to_pixels(samples(service, 7, 3, 5))[..., 0])
    assert {key: answer.json()[key] for key in ("seed", "model", "size")} == {"seed": 7, "model": "tiny", "size": "8x8"}


def test_a_seed_that_was_drawn_is_told_and_gives_the_same_again(service):
    first, other = post(service, prompt="3"), post(service, prompt="3")
    again = post(service, prompt="3", seed=first.json()["seed"], model="tiny", size="8x8", response_format="b64_json")
    assert first.json()["data"] == again.json()["data"] != other.json()["data"]


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_kinds_of_files(service, kind):
    answer = post(service, prompt="3", seed=7, output_format=kind)
    image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert image.format == kind.upper()
    close = np.array(image.convert("L")).astype(int) - pixels(post(service, prompt="3", seed=7))[0]
    assert abs(close).max() <= (16 if kind == "jpeg" else 0)


def test_one_picture_of_all_images(service):
    answer = get(service, "/v1/generate.png?prompt=3&seed=7&n=5")
    np.testing.assert_array_equal(
        np.array(Image.open(io.BytesIO(answer.content))), image_grid(samples(service, 7, 3, 5))[..., 0]
    )
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("image/png", "7")


REFUSED = {
    "class": ({"prompt": "ten"}, 400, "prompt"),
    "number": ({"prompt": 3}, 400, "prompt"),
    "nothing": ({}, 400, "prompt"),
    "address": ({"prompt": "https://example.org"}, 400, "prompt"),
    "size": ({"prompt": "3", "size": "1024x1024"}, 400, "size"),
    "quality": ({"prompt": "3", "quality": "hd"}, 400, "quality"),
    "style": ({"prompt": "3", "style": "vivid"}, 400, "style"),
    "stream": ({"prompt": "3", "stream": True}, 400, "stream"),
    "url": ({"prompt": "3", "response_format": "url"}, 400, "response_format"),
    "gif": ({"prompt": "3", "output_format": "gif"}, 400, "output_format"),
    "model": ({"prompt": "3", "model": "dall-e-3"}, 404, "model"),
    "path": ({"prompt": "3", "model": "/etc"}, 404, "model"),
    "none": ({"prompt": "3", "n": 0}, 400, "n"),
    "many": ({"prompt": "3", "n": 17}, 400, "n"),
    "words": ({"prompt": "3", "n": "2"}, 400, "n"),
    "true": ({"prompt": "3", "n": True}, 400, "n"),
    "part": ({"prompt": "3", "seed": 1.5}, 400, "seed"),
    "below": ({"prompt": "3", "seed": -1}, 400, "seed"),
    "above": ({"prompt": "3", "seed": 2**63}, 400, "seed"),
}


@pytest.mark.parametrize(("body", "status", "param"), REFUSED.values(), ids=REFUSED)
def test_a_field_that_is_wrong_or_not_honoured_is_named(service, body, status, param):
    answer = post(service, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert param in error["message"]
    assert "\n" not in error["message"]
    assert service.reserved == 0


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"prompt": "3"}', "text/plain", 415),
        (b" " * 70_000, "application/json", 413),
    ],
)
def test_bodies_that_are_none(service, body, kind, status):
    (answer,) = asked(service, ("POST", IMAGES, {"content": body, "headers": {"content-type": kind}}))
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


def test_a_query_brings_no_large_body(service):
    assert asked(service, ("GET", "/v1/generate.png?prompt=3", {"content": b" " * 70_000}))[0].status_code == 413


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/generate.png", 400),
        ("/v1/generate.png?prompt=3&guidance=2", 400),
        ("/v1/generate.png?prompt=3&prompt=4", 400),
        ("/v1/generate.png?prompt=3&n=two", 400),
        ("/v1/models/none", 404),
        ("/nowhere", 404),
        (IMAGES, 405),
        ("/docs", 404),
        ("/openapi.json", 404),
    ],
)
def test_wrong_addresses_and_queries(service, path, status):
    answer = get(service, path)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


def test_a_bad_request_spoils_nobodys_batch(service):
    bodies = [{"prompt": str(seed % 10), "seed": seed} for seed in range(40)]
    bodies.insert(20, {"prompt": "eleven"})
    many = asked(service, *(("POST", IMAGES, {"json": body}) for body in bodies))
    assert [answer.status_code for answer in many] == [200] * 20 + [400] + [200] * 20
    assert many[3].json()["data"] == post(service, prompt="3", seed=3).json()["data"]


def test_models_and_probes(service):
    assert [each["id"] for each in get(service, "/v1/models").json()["data"]] == ["tiny"]
    assert get(service, "/v1/models/tiny").json()["id"] == "tiny"
    assert get(service, "/healthz").status_code == 200
    assert get(service, "/readyz").json() == {"ready": True, "models": ["tiny"], "detail": []}


def test_metrics_count_requests_and_images(folder):
    with serving(folder) as service:
        for body in ({"prompt": "3", "n": 5}, {"prompt": "4", "n": 2}, {"prompt": "ten"}):
            post(service, **body)
        text = get(service, "/metrics").text.splitlines()
    expected = [("fdistill_images_total", 7), ("fdistill_queue_images", 0), ("fdistill_batch_images", 7)]
    expected += [('fdistill_requests_total{status="200"}', 2), ('fdistill_requests_total{status="400"}', 1)]
    assert [line for line in (f"{name} {value:.1f}" for name, value in expected) if line not in text] == []


def test_the_page_tells_all_generators_and_loads_nothing_from_elsewhere(folder, tmp_path):
    other = export(tmp_path / "other", seed=1)
    (other / "README.md").write_text("<script>alert(1)</script>")
    with serving(folder, other) as service:
        answer = get(service, "/")
    assert all(f'<option value="{name}"' in answer.text for name in ("tiny", "other"))
    assert "&lt;script&gt;alert(1)" in answer.text
    assert "//" not in "".join(line.split("//")[0] for line in answer.text.splitlines() if "src=" in line)
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_full_queue_says_when_to_come_back_and_then_takes_again(folder):
    async def run(service):
        async with client(service) as http:
            waiting = [asyncio.ensure_future(http.post(IMAGES, json={"prompt": "3", "n": 16})) for _ in range(4)]
            while service.reserved < 64:
                await asyncio.sleep(0.01)
            full = await http.post(IMAGES, json={"prompt": "3"})
            service.batcher.start()
            return full, await asyncio.gather(*waiting), await http.post(IMAGES, json={"prompt": "3"})

    with serving(folder, start=False) as service:
        full, answered, after = asyncio.run(run(service))
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in (*answered, after)] == [200] * 5
    assert service.reserved == 0


@pytest.mark.parametrize(("is_whole", "dropped"), [(True, 9), (False, 0)])
def test_pictures_of_a_client_that_left_are_not_made(folder, is_whole, dropped):
    async def run(service):
        body = json.dumps({"prompt": "3", "n": 9}).encode()
        parts = [{"type": "http.request", "body": body, "more_body": not is_whole}]

        async def receive():
            return parts.pop(0) if parts else {"type": "http.disconnect"}

        async def send(_):
            pass

        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": IMAGES, "headers": headers, "query_string": b""}
        await create_app(service)(scope, receive, send)

    with serving(folder, start=False) as service:
        asyncio.run(run(service))
        service.worker.call("state").result(60)  # calls are read in their order
        assert service.reserved == 0
        service.batcher.start()
    assert (service.batcher.dropped, service.batcher.made) == (dropped, 0)


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/v1/generate.png?prompt=3", "/nowhere"])
def test_everything_but_the_probes_wants_the_token(service, path):
    assert [get(service, probe, token=TOKEN).status_code for probe in ("/healthz", "/readyz")] == [200, 200]
    expected = 404 if path == "/nowhere" else 200
    for given, status in (
        ("", 401),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        (b"Basic \xe9", 401),
        (f"Bearer {TOKEN}", expected),
    ):
        answer = get(service, path, token=TOKEN, authorization=given)
        assert answer.status_code == status
    (answer,) = asked(service, ("GET", path, {"auth": BasicAuth("me", TOKEN)}), token=TOKEN)
    assert answer.status_code == expected


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("[::1]", 200), ("example.org", 403)])
def test_without_a_token_other_names_of_this_machine_are_refused(service, host, status):
    assert get(service, "/v1/models", host=host).status_code == status
    assert get(service, "/v1/models", host=host, token=TOKEN, authorization=f"Bearer {TOKEN}").status_code == 200

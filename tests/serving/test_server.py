"""The service as a process: refused before it starts, asked by stock clients, drained by SIGTERM, looked at."""

import asyncio
import base64
import io
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cli_runs import fdistill, one_error_line
from live import accepted, live, visited
from PIL import Image
from services import export

from fdistill.serving.settings import listening


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "token"),
        (["--host", "::"], "token"),
        (["--host", "nowhere.invalid", "--token_file", "good"], "cannot be served"),
        (["--token_file", "short"], "16"),
        (["--token_file", "absent"], "absent"),
        (["--limit", "2000"], "limit"),
        (["--limit", "0"], "limit"),
        (["--max_batch", "0"], "max_batch"),
        (["--port", "-1"], "a port lies in [0, 65535]"),
        (["--port", "99999"], "a port lies in [0, 65535], where 0 stands for a free one: got 99999"),
        (["--jobs", "runs"], "both or neither"),
        (["--jobs", "runs", "--configs", "absent"], "absent"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(folder, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    Path("good").write_text("a-token-of-many-letters\n")
    Path("short").write_text("secret")
    assert word in one_error_line(fdistill("serve", folder, "--port", "0", *arguments))


def test_a_port_in_use_is_said(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        line = one_error_line(fdistill("serve", folder, "--port", other.getsockname()[1]))
    assert "in use" in line


def test_small_answers_do_not_wait_for_acknowledgements():
    async def delays():
        with listening("127.0.0.1", 0) as opened:
            server = await asyncio.start_server(lambda _, writer: found.put_nowait(writer), sock=opened)
            found = asyncio.Queue()
            _, there = await asyncio.open_connection(*opened.getsockname())
            here = await found.get()
            delayed = not here.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for writer in (here, there):
                writer.close()
            server.close()
            return delayed

    assert not asyncio.run(delays())


def test_without_the_extra_its_name_is_told(folder, monkeypatch):
    from fdistill.cli.commands import serve

    monkeypatch.setattr(serve, "_NEEDS", ("fastapi", "no_such_package"))
    assert "pip install 'fdistill[serve]'" in one_error_line(fdistill("serve", folder))


@pytest.mark.slow
def test_the_openai_client_gets_pictures_and_our_sentences(folder, tmp_path):
    openai = pytest.importorskip("openai")
    token = tmp_path / "token"
    token.write_text("a-token-of-many-letters")
    with live(folder, "--token_file", token) as (_, place):
        client = openai.OpenAI(base_url=f"{place}/v1", api_key=token.read_text(), max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        how = {"model": "tiny", "prompt": "seven", "n": 3, "extra_body": {"seed": 7}}
        first, again = client.images.generate(**how), client.images.generate(**how, response_format="b64_json")
        assert [each.b64_json for each in first.data] == [each.b64_json for each in again.data]
        assert Image.open(io.BytesIO(base64.b64decode(first.data[0].b64_json))).size == (8, 8)
        with pytest.raises(openai.BadRequestError, match="a prompt of tiny is the number of a class"):
            client.images.generate(model="tiny", prompt="eleven")
        with pytest.raises(openai.NotFoundError, match="model is one of"):
            client.images.generate(model="dall-e-3", prompt="3")
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{place}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.slow
def test_sigterm_answers_what_waits_and_ends_well(folder):
    def ask(place, seed):
        body = {"prompt": "3", "n": 8, "seed": seed}
        return httpx.post(f"{place}/v1/images/generations", json=body, timeout=60).status_code

    with live(folder, "--max_batch", "1") as (process, place), ThreadPoolExecutor(100) as pool:
        answers = [pool.submit(ask, place, seed) for seed in range(100)]
        while accepted(place) < 800:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in answers] == [200] * 100
        assert process.wait(60) == 0


@pytest.mark.slow
def test_an_error_that_is_none_of_a_batch_is_answered_and_ends_the_process(folder):
    code = """
from fdistill.serving.generators import Generator
first = Generator.make
def make(self, *given):
    Generator.make = lambda *_: sys.modules["no_such_device"]
    return first(self, *given)
Generator.make = make
"""
    before = f"from fdistill.serving import worker\nworker._BEGIN = worker._BEGIN.replace('main(', {code!r} + 'main(')"
    with live(folder, before=before) as (process, place):
        answer = httpx.post(f"{place}/v1/images/generations", json={"prompt": "3"}, timeout=60)
        assert (answer.status_code, set(answer.json())) == (503, {"error"})
        assert process.wait(60) == 1


@pytest.mark.slow
def test_a_person_types_a_class_and_sees_pictures_change(folder, tmp_path):
    (other := export(tmp_path / "other", num_classes=0)).joinpath("README.md").write_text("# Another card")
    with live(folder, other) as (_, place), visited(place) as (page, wrong):
        pictures = page.locator("#pictures img")
        assert pictures.count() == 0
        shown, of_text = [], "text => document.querySelector('#pictures img')?.alt.startsWith(text + ',')"
        for text in ("3", "seven", "3"):
            page.fill("#prompt", text)
            page.wait_for_function(of_text, arg=text)
            assert pictures.count() == 16
            assert pictures.first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
            shown.append([picture.get_attribute("src") for picture in pictures.all()])
        assert shown[0] == shown[2] != shown[1]  # of the same seed
        page.check("#moving")
        page.wait_for_function("src => document.querySelector('#pictures img').src != src", arg=shown[2][0])
        assert wrong == []
        page.fill("#prompt", "eleven")
        page.wait_for_selector("#said.wrong")
        assert "the number of a class" in page.inner_text("#said")
        assert pictures.count() == 0
        page.select_option("#model", "other")
        assert page.inner_text(".card:visible") == "# Another card"
        page.fill("#prompt", "")
        page.wait_for_selector("#pictures img")

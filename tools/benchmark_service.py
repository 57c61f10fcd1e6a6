"""What a service gives of a bare loop of batches, how long requests wait, and what happens when too much is asked.

    python tools/benchmark_service.py --repeats 5

A service of two processes, HTTP and worker, is asked by clients in this one. Of every repeat the bare loop (batches of
the one padded shape, made here, with and without PNG) runs just before the service is asked. Printed are medians and
ranges over repeats. Processor time, of all threads of a process, says what a busy machine hides. The figures of
docs/service.md are of an idle one, of this command and the same with `--generator fashion-student`.
"""

import argparse
import asyncio
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fdistill.core.presets import checkpoint
from fdistill.core.random import generator_for
from fdistill.models.condition import Condition
from fdistill.sampling.pictures import to_pixels
from fdistill.serving.generators import Generator
from fdistill.serving.images import encoded
from fdistill.serving.settings import How

LOADS = ((32, 8), (8, 64))  # clients, images of a request


class Server:
    """`fdistill serve` of one generator."""

    def __init__(self, options: argparse.Namespace, *more: object) -> None:
        command = [sys.executable, "-m", "fdistill", "serve", f"served={options.generator}", "--port", 0]
        command += ["--max_batch", options.batch, *more]
        self.process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
        found = None
        while found is None:
            line = self.process.stderr.readline()
            if not line:
                raise RuntimeError("the service did not start")
            found = re.search(r"http://127.0.0.1:(\d+)", line)
        self.port = int(found[1])

    def processes(self) -> list[int]:
        """Its own, and its worker's."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def memory(self) -> list[float]:
        """Resident, in MB, of each."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self.processes()]
        return [int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024 for text in texts]

    def processor(self) -> list[float]:
        """Seconds of processor time that each has used."""
        texts = [Path(f"/proc/{pid}/stat").read_text() for pid in self.processes()]
        used = [map(int, text.rpartition(")")[2].split()[11:13]) for text in texts]
        return [sum(each) / os.sysconf("SC_CLK_TCK") for each in used]

    def taken(self) -> float:
        """Images that it has answered, or is asked for."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            values = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:1] != "#")
        return float(values["fdistill_images_total"]) + float(values["fdistill_queue_images"])

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Client:
    """One connection that is kept; no more of HTTP than this needs."""

    def __init__(self, port: int) -> None:
        self.port, self.reader = port, None

    async def ask(self, n: int, prompt: str = "3") -> int:
        """The status of an answer that was read to its end; 0 for a connection that broke."""
        try:
            if self.reader is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            body = json.dumps({"prompt": prompt, "n": n}).encode()
            about = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.writer.write(b"POST /v1/images/generations HTTP/1.1\r\n" + about.encode() + body)
            head = await self.reader.readuntil(b"\r\n\r\n")
            await self.reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
            if b"connection: close" in head.lower():
                self.close()
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError):
            self.reader = None
            return 0

    def close(self) -> None:
        if self.reader is not None:
            self.writer.close()
            self.reader = None


async def load(port: int, clients: int, n: int, seconds: float) -> tuple[float, list[float], Counter]:
    """Images a second, seconds of requests, and counts of statuses of clients that ask one after the other."""
    end, times, statuses = time.perf_counter() + seconds, [], Counter()

    async def one() -> None:
        client = Client(port)
        while (begin := time.perf_counter()) < end:
            status = await client.ask(n)
            statuses[status] += 1
            if status == 200:
                times.append(time.perf_counter() - begin)
        client.close()

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return n * statuses[200] / (time.perf_counter() - begin), times, statuses


def bare(generator: Generator, seconds: float, png: bool) -> tuple[float, float, float]:
    """Images a second of the bare padded loop, the median seconds of its batches, and their processor seconds."""
    condition, times, seed = Condition.cat([generator.condition("3")] * generator.size), [], 0
    begin, used = time.perf_counter(), time.process_time()
    while time.perf_counter() < begin + seconds:
        start = time.perf_counter()
        noise = torch.cat([generator.noise(generator_for(seed, index)) for index in range(generator.size)])
        made = generator.make(noise, condition, generator.size)
        if png:
            encoded(made, "png")
        times.append(time.perf_counter() - start)
        seed += 1
    used = time.process_time() - used
    return generator.size * len(times) / sum(times), statistics.median(times), used / len(times)


def pngs(generator: Generator) -> None:
    """Processor time and size of a PNG here and of Pillow's, of the generator's pictures and of two photographs."""
    condition = Condition.cat([generator.condition("3")] * generator.size)
    noise = torch.cat([generator.noise(generator_for(0, index)) for index in range(generator.size)])
    photographs = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2) / 127.5 - 1
    for images in (generator.make(noise, condition, generator.size), photographs):
        found = []
        for write in (lambda images=images: encoded(images, "png"), lambda images=images: pillows(images)):
            files, begin, count = write(), time.process_time(), 0
            while time.process_time() < begin + 0.5:
                write()
                count += 1
            micros = 1e6 * (time.process_time() - begin) / count / len(files)
            found.append(f"{micros:,.0f} us and {sum(map(len, files)) / len(files):,.0f} bytes")
        print(f"* a PNG of {list(images.shape[1:])}: {found[0]}; Pillow's {found[1]}", flush=True)


def pillows(images: torch.Tensor) -> list[bytes]:
    files = []
    for each in to_pixels(images):
        buffer = io.BytesIO()
        Image.fromarray(each.squeeze()).save(buffer, "png", compress_level=1)
        files.append(buffer.getvalue())
    return files


def quantiles(times: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(times)
    return 1000 * ordered[len(ordered) // 2], 1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def said(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def throughput(options: argparse.Namespace, generator: Generator) -> None:
    server = Server(options)
    asyncio.run(load(server.port, 4, 8, 1))
    found: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        rate, seconds, _ = bare(generator, options.seconds, png=False)
        with_png, _, processor = bare(generator, options.seconds, png=True)
        values = {"bare loop, images/s": rate, "bare loop with PNG, images/s": with_png}
        values["bare loop with PNG, processor ms of a batch"] = 1000 * processor
        for clients, n in LOADS:
            used = [*server.processor(), time.process_time()]
            images, times, statuses = asyncio.run(load(server.port, clients, n, options.seconds))
            assert set(statuses) == {200}, statuses
            batches = n * statuses[200] / options.batch
            now = [*server.processor(), time.process_time()]
            http, worker, own = (1000 * (after - before) / batches for after, before in zip(now, used, strict=True))
            p50, p99 = quantiles(times)
            name = f"{clients} clients x {n}"
            values |= {f"{name}, images/s": images, f"{name}, of the bare loop": images / rate}
            values |= {f"{name}, of the bare loop with PNG": images / with_png}
            for part, milliseconds in {"worker": worker, "HTTP": http, "clients": own}.items():
                values[f"{name}, processor ms of a batch, {part}"] = milliseconds
            values[f"{name}, processor time of the worker, of the bare loop with PNG"] = worker / 1000 / processor
            values |= {f"{name}, p50 ms": p50, f"{name}, p99 ms": p99, f"{name}, p99 / p50": p99 / p50}
        _, times, _ = asyncio.run(load(server.port, 1, 1, options.seconds))
        values |= {"a batch, ms": 1000 * seconds, "a lone request, p50 ms": quantiles(times)[0]}
        values["a lone request less a batch, ms"] = values["a lone request, p50 ms"] - values["a batch, ms"]
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    print("| | median (least to most) |\n|---|---|")
    for name, each in found.items():
        print(f"| {name} | {said(each, 0 if name.endswith('images/s') else 2)} |")
    print(f"| memory, MB, HTTP and worker | {' and '.join(f'{each:,.0f}' for each in server.memory())} |", flush=True)
    server.end()


async def at_once(port: int, clients: int, n: int, prompts: list[str]) -> Counter:
    return Counter(await asyncio.gather(*(Client(port).ask(n, prompts[i % len(prompts)]) for i in range(clients))))


def overload(options: argparse.Namespace) -> None:
    """Ten times as many images at once as the queue has room for, for a while; then as before."""
    room = 4 * options.batch
    server = Server(options, "--queue", room)
    asyncio.run(load(server.port, 8, 8, 1))
    before, lone = sum(server.memory()), quantiles(asyncio.run(load(server.port, 1, 1, 1))[1])[0]
    _, times, statuses = asyncio.run(load(server.port, 10 * room // 8, 8, options.seconds))
    after = [quantiles(asyncio.run(load(server.port, 1, 1, 1))[1])[0], sum(server.memory())]
    p50, p99 = quantiles(times)
    print(f"* {10 * room // 8} clients x 8 at a queue of {room}: {dict(statuses)}, p50 {p50:.0f}, p99 {p99:.0f} ms")
    print(f"* lone request {lone:.1f} ms before and {after[0]:.1f} ms in the second after")
    print(f"* memory {before:,.0f} MB before, {after[1]:,.0f} after", flush=True)
    mixed = asyncio.run(at_once(server.port, 41, 1, ["3"] * 40 + ["eleven"]))
    print(f"* 40 good requests and one bad: {dict(mixed)}", flush=True)
    server.end()


def runs(pid: int) -> bool:
    """Whether there is such a process, and not what is left of one."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def endings(options: argparse.Namespace) -> None:
    """SIGTERM, and kill -9, with 100 requests in flight."""

    async def killed(server: Server, how: int) -> tuple[Counter, float]:
        waiting = [asyncio.ensure_future(Client(server.port).ask(8)) for _ in range(100)]
        while await asyncio.to_thread(server.taken) < 800:
            await asyncio.sleep(0.01)
        server.process.send_signal(how)
        begin = time.perf_counter()
        return Counter(await asyncio.gather(*waiting)), time.perf_counter() - begin

    for how in (signal.SIGTERM, signal.SIGKILL):
        server = Server(options)
        worker = server.processes()[1:]
        statuses, seconds = asyncio.run(killed(server, how))
        code, begin = server.process.wait(60), time.perf_counter()
        while any(map(runs, worker)):
            time.sleep(0.01)
        gone = time.perf_counter() - begin
        said = f"all within {seconds:.2f} s, exit status {code}, worker gone {gone:.2f} s later"
        print(f"* {how.name} with 100 in flight: {dict(statuses)}, {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="digits-student")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    print(
        f"{options.generator}, batches of {options.batch}, {options.repeats} repeats of {options.seconds:g} s; ", end=""
    )
    print(f"load before: {os.getloadavg()[0]:.1f}", flush=True)
    generator = Generator("here", checkpoint(options.generator), How(options.batch))
    throughput(options, generator)
    overload(options)
    endings(options)
    pngs(generator)


if __name__ == "__main__":
    main()

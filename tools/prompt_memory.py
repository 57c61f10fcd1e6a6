"""Memory of a stream of batches of encoded prompts, of any number: files with holes in place of numbers.

    python tools/prompt_memory.py --prompts 100000

The folder is as `fdistill encode-prompts` writes it for SDXL (77 x 2048 and 1280 numbers of 16 bits a prompt), all zero
and without room on the disk. Prints the process's own memory (RssAnon of Linux: without pages of mapped files, which
the system drops when it needs them) before the data, with it, and at its peak over the batches.
"""

import argparse
import json
import struct
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file

from fdistill.data import Prompts
from fdistill.data.encode_prompts import FILE_BYTES
from fdistill.data.prompt_files import DESCRIPTION, ENDS, NULL, TEXT, TEXT_ENDS, PromptDescription

SHAPES: dict[str, list[int | None]] = {"encoder_hidden_states": [77, 2048], "added_cond_kwargs.text_embeds": [1280]}
BYTES = 2 * (77 * 2048 + 1280)


def write_holes(path: Path, count: int) -> int:
    """A safetensors file of `count` prompts of one letter, whose embeddings are a hole; returns its size."""
    ends = torch.arange(1, count + 1).numpy().tobytes()
    small = {TEXT_ENDS: ("I64", [count], ends), ENDS: ("I64", [count], bytes(8 * count))}
    small[TEXT] = ("U8", [count], b"x" * count)
    header: dict[str, object] = {"__metadata__": {"request": "holes"}}
    place = 0
    sizes = {name: (kind, shape, len(content)) for name, (kind, shape, content) in small.items()}
    for name, shape in SHAPES.items():
        whole = [count, *(size for size in shape if size is not None)]
        sizes[name] = ("F16", whole, 2 * torch.Size(whole).numel())
    for name, (kind, shape, size) in sizes.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(content for _, _, content in small.values()))
        file.truncate(8 + len(text) + place)
    return path.stat().st_size


def write_folder(folder: Path, prompts: int) -> int:
    """A folder of so many prompts; returns the bytes that it seems to have."""
    files, per_file = [], FILE_BYTES // BYTES
    for number, first in enumerate(range(0, prompts, per_file)):
        count, name = min(per_file, prompts - first), f"prompts-{number:05}.safetensors"
        files.append({"name": name, "prompts": count, "bytes": write_holes(folder / name, count)})
    null = {name: torch.zeros(1, *shape, dtype=torch.float16) for name, shape in SHAPES.items()}
    save_file(null, folder / NULL, {"request": "holes"})
    described = PromptDescription("StableDiffusionXLPipeline", "holes", SHAPES, None, files, {}, "holes")
    (folder / DESCRIPTION).write_text(json.dumps(described._asdict()))
    return sum(file["bytes"] for file in files)


def own_mib() -> float:
    """Memory of this process that is no mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write_folder(Path(folder), arguments.prompts)
        before = own_mib()
        data = Prompts(folder, [4, 64, 64], batch_size=arguments.batch_size)
        stream = islice(data.train_dataloader(), arguments.batches)
        opened, peak, began = own_mib(), 0.0, time.perf_counter()
        held = 0.0
        for batch in stream:
            peak = max(peak, own_mib())
            held = sum(value.nbytes for value in batch.condition.values()) / 2**20
        seconds = time.perf_counter() - began
    print(f"{arguments.prompts:,} prompts of {BYTES:,} bytes, {size / 1e9:.1f} GB of files; a batch {held:.0f} MiB")
    print(f"own memory: {before:.0f} MiB before, {opened:.0f} MiB with the data, {peak:.0f} MiB at its peak")
    print(f"{1000 * seconds / arguments.batches:.0f} ms a batch")


if __name__ == "__main__":
    main()

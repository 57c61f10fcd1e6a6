"""`fdistill encode-prompts`: prompts become embeddings once, so that training needs no text encoder."""

from pathlib import Path
from typing import Literal

import torch

from fdistill.core.devices import usable_device
from fdistill.core.places import require_writable
from fdistill.data.encode_prompts import PromptEncoding
from fdistill.data.encode_prompts import encode_prompts as encode
from fdistill.data.prompt_encoders import PromptEncoder
from fdistill.data.prompt_texts import read_prompts


def encode_prompts(
    prompts: str,
    pipeline: str | None = None,
    out: str = "prompts",
    column: str | None = None,
    batch_size: int = 16,
    numbers: Literal["float16", "bfloat16", "float32"] = "float16",
    bf16: bool = False,
    max_tokens: int | None = None,
    skip_empty: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
) -> None:
    """Encode prompts with a pipeline's text encoders; an interrupted command goes on, one that is done does nothing.

    Args:
        prompts: text file of one prompt a line; .jsonl; .parquet; a folder that datasets saved; or a folder of images
            with a text file of the same name beside each.
        pipeline: folder of the text-to-image pipeline as diffusers saves it; its network and VAE are not loaded.
        out: folder to write, for the data Prompts: embeddings, prompts, "no prompt" and prompts.json.
        column: of .jsonl, .parquet or a data set; prompt, caption or text where not given.
        batch_size: prompts at once.
        numbers: in which embeddings are stored.
        bf16: let the encoders compute in bfloat16, at half the memory.
        max_tokens: of a prompt, where the pipeline has a max_sequence_length; 256 for FLUX.1-schnell.
        skip_empty: leave out empty prompts, which are an error otherwise.
        device: where to encode: cpu, cuda, cuda:1, mps.
        overwrite: encode again and replace whatever encoded prompts are there.
    """
    if pipeline is None:
        raise ValueError("encode-prompts needs the pipeline whose encoders a model is to hear: give --pipeline FOLDER")
    target = Path(out)
    require_writable(target / "prompts.json")
    if target.is_file():
        raise NotADirectoryError(f"cannot write {target}: it is a file; name a folder")
    texts = read_prompts(Path(prompts), column, skip_empty)
    dtype = torch.bfloat16 if bf16 else torch.float32
    encoder = PromptEncoder(Path(pipeline), usable_device(device), dtype, max_tokens)
    done = encode(PromptEncoding(texts, prompts, encoder, numbers, batch_size), target, overwrite)
    for name, limit in encoder.limits().items():
        if done.cut[name]:
            print(f"{done.cut[name]:,} of {done.prompts:,} prompts are cut: longer than {limit} tokens of {name}")
    if not done.now:
        print(f"{target} holds these {done.prompts:,} prompts already; nothing was computed")
        return
    each = done.bytes / done.prompts
    print(f"wrote {done.prompts:,} prompts to {target}, {each:,.0f} bytes each; {done.now:,} were encoded now")
    print(f"to train on them: --data Prompts --data.folder {target}")

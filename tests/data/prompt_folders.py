"""PromptOutputs prompts without a text encoder: what a prompt gives is a function of its letters."""

import torch

from fdistill.core.fingerprints import fingerprint
from fdistill.core.random import generator_for
from fdistill.data.encode_prompts import PromptEncoding, encode_prompts
from fdistill.models.networks.text import PromptOutputs

PROMPTS = [f"{'very ' * (n % 4)}prompt {n}" for n in range(10)]
LONGEST, WIDTH = 8, 6


class LetterEncoder:
    """Random numbers named by each word; with a mask, tokens are words, and without, all `LONGEST` rows are read."""

    name, settings, dtype, folder = "LetterPipeline", {"max_sequence_length": LONGEST}, "torch.float32", None

    def __init__(self, masked=True, broken=None, scale=1.0):
        self.family = PromptOutputs({"text": 0}, {}, "mask" if masked else None)
        self.broken, self.scale, self.asked = broken, scale, []

    def identity(self):
        return fingerprint([self.name, self.scale])

    def limits(self):
        return {"tokenizer": LONGEST}

    def cut(self, prompts):
        return {"tokenizer": sum(len(prompt.split()) > LONGEST for prompt in prompts)}

    def null(self):
        return self.encode([""])

    def encode(self, prompts):
        if self.broken in prompts:
            raise RuntimeError("killed")
        self.asked += prompts
        rows = [self._row(prompt) for prompt in prompts]
        lengths = torch.tensor([max(len(prompt.split()), 1) for prompt in prompts])
        found = {"text": torch.stack(rows), "pooled": torch.stack([row.mean(0) for row in rows])}
        mask = (torch.arange(LONGEST) < lengths[:, None]).long()
        return found | ({"mask": mask} if self.family.mask else {})

    def _row(self, prompt):
        words = [*prompt.split(), *["-"] * LONGEST][:LONGEST]
        seeds = [int.from_bytes(word.encode()[:6], "big") for word in words]
        return self.scale * torch.stack([torch.randn(WIDTH, generator=generator_for(seed)) for seed in seeds])


def write_prompts(folder, prompts=PROMPTS, encoder=None, overwrite=False, **settings):
    return encode_prompts(PromptEncoding(prompts, "a test", encoder or LetterEncoder(), **settings), folder, overwrite)

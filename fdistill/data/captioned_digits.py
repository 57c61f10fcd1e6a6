"""Coloured digits on coloured grounds with captions: a text-to-image problem that a laptop solves, all offline."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fdistill.data.base import GenerativeDataModule, require_at_least
from fdistill.data.batches import Batch, InMemorySplit
from fdistill.data.digits import digit_splits
from fdistill.data.prompt_files import PromptFiles
from fdistill.models.condition import Condition, Entry, Takes
from fdistill.models.networks.text.word_unet import IDS
from fdistill.models.networks.text.words import token_ids, word_tokenizer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.95, 0.85, 0.1),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}
"""Of digits and grounds, in [0, 1]."""
PARTS = (len(DIGITS), len(COLOURS), len(COLOURS))
"""How many digits, colours and grounds there are."""


def caption_parts() -> Tensor:
    """Digit, colour and ground of each of the 300 captions, int64 [300, 3]; a digit's colour is not its ground's."""
    every = torch.cartesian_prod(*(torch.arange(count) for count in PARTS))
    return every[every[:, 1] != every[:, 2]]


def caption_numbers(parts: Tensor) -> Tensor:
    """The number of the caption of each digit, colour and ground int64 [n, 3]; -1 where both colours are one."""
    digit, colour, ground = parts.unbind(1)
    number = (digit * PARTS[1] + colour) * (PARTS[2] - 1) + ground - (ground > colour).long()
    return number.where(colour != ground, -1)


def captions() -> list[str]:
    """All 300, "a red seven on a blue ground", by their numbers."""
    names = list(COLOURS)
    return [f"a {names[c]} {DIGITS[d]} on a {names[g]} ground" for d, c, g in caption_parts().tolist()]


def held_out_captions() -> Tensor:
    """Numbers of the 30 captions that no training image has, int64: digit d < 6 in colour d, on any ground."""
    digit, colour, _ = caption_parts().unbind(1)
    return (digit == colour).nonzero()[:, 0]


def paint(ink: Tensor, numbers: Tensor) -> Tensor:
    """Digits [n, 1, 8, 8] of ink in [0, 1] as these captions int64 [n] say: colour images [n, 3, 8, 8] in [-1, 1]."""
    palette = torch.tensor(list(COLOURS.values()))
    colour, ground = (palette[part][:, :, None, None] for part in caption_parts()[numbers, 1:].unbind(1))
    return 2 * (ground + ink * (colour - ground)) - 1


class CaptionedDigits(GenerativeDataModule):
    """The digits of ``Digits`` in 6 colours on 5 grounds each, colour 8x8 images in [-1, 1], with 300 captions.

    A training digit has every caption of its class but the 30 of `held_out_captions`; a held-out digit has all. The
    condition is the caption; the class number, which metrics read, is the caption's. For a network with a text model of
    its own (`WordUNet`) a caption is its tokens; for others it is what ``fdistill encode-prompts`` wrote of the 300
    captions, in the order of `captions`.

    Args:
        prompts: Folder of encoded captions; None for tokens, which need transformers.
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Chooses the held-out digits, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.

    Raises:
        ValueError: An argument is out of its range; or, on first use, the folder holds other prompts.
    """

    sample_shape = (3, 8, 8)
    num_classes = len(DIGITS) * len(COLOURS) * (len(COLOURS) - 1)

    def __init__(
        self,
        prompts: str | None = None,
        batch_size: int = 128,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(0, split_seed=split_seed)
        self.prompts, self.split_seed = prompts, split_seed
        self._encoded: tuple[Condition, Condition] | None = None

    @property
    def takes(self) -> Takes:
        """A caption."""
        return {name: Entry(tuple(value.shape[1:]), value.dtype) for name, value in self.encoded.items()}

    @property
    def encoded(self) -> Condition:
        """Of all 300 captions, by their numbers."""
        return self._encodings()[0]

    def null(self) -> Condition:
        """The condition of one sample that means "no caption": the empty text."""
        return self._encodings()[1]

    def named_conditions(self, most: int) -> tuple[Condition, list[str]]:
        """Up to `most` captions, evenly over all, as conditions and as texts."""
        chosen = torch.linspace(0, self.num_classes - 1, min(most, self.num_classes)).round().long()
        texts = captions()
        return self.encoded.rows(chosen), [texts[number] for number in chosen]

    def prompts_in_parts(self) -> Iterator[tuple[Condition, list[str]]]:
        """Yield the 300 captions."""
        yield self.encoded, captions()

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return the two splits."""
        train, held_out = digit_splits(self.split_seed)
        return self._painted(train, held_out_captions()), self._painted(held_out, torch.tensor([], dtype=torch.int64))

    def _painted(self, digits: Batch, without: Tensor) -> InMemorySplit:
        numbers = digits.classes[:, None] * (self.num_classes // len(DIGITS)) + torch.arange(30)
        ink = ((digits.x + 1) / 2)[:, None].expand(-1, 30, -1, -1, -1).flatten(0, 1)
        numbers = numbers.flatten()
        kept = ~torch.isin(numbers, without)
        return _CaptionedSplit(paint(ink[kept], numbers[kept]), numbers[kept], self.encoded)

    def _encodings(self) -> tuple[Condition, Condition]:
        if self._encoded is None:
            self._encoded = _tokens() if self.prompts is None else _read(Path(self.prompts))
        return self._encoded


class _CaptionedSplit(InMemorySplit):
    """Images whose condition is their caption."""

    def __init__(self, x: Tensor, numbers: Tensor, encoded: Condition) -> None:
        super().__init__(x, numbers)
        self.encoded = encoded

    def batch(self, x: Tensor, classes: Tensor) -> Batch:
        return Batch(x, classes, self.encoded.rows(classes))


def _tokens() -> tuple[Condition, Condition]:
    texts = captions()
    words = [word for text in texts for word in text.split()]
    try:
        tokenizer = word_tokenizer(words, max(len(text.split()) for text in texts) + 2)
    except ImportError as error:
        raise ValueError(f"tokens need transformers: pip install 'fdistill[text]' ({error})") from error
    found = torch.tensor(token_ids([*texts, ""], tokenizer))
    return Condition({IDS: found[:-1]}), Condition({IDS: found[-1:]})


def _read(folder: Path) -> tuple[Condition, Condition]:
    files, texts = PromptFiles(folder), captions()
    if len(files) != len(texts) or files.texts(range(len(files))) != texts:
        raise ValueError(
            f"{folder} holds other prompts than the {len(texts)} captions of coloured digits: encode those"
        )
    return files.condition(range(len(files))), files.null()

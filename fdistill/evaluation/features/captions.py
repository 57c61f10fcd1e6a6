"""The judge of captioned digits: a small classifier that reads digit, colour and ground, and so the caption."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fdistill.data.batches import InMemorySplit
from fdistill.data.captioned_digits import PARTS, caption_numbers, caption_parts, paint
from fdistill.data.digits import digit_splits
from fdistill.evaluation.features.classifier import ClassifierFeatures
from fdistill.evaluation.metrics.classifier import ConvClassifier

STEPS, BATCH, LEARNING_RATE, WIDTH = 3000, 128, 4e-3, 32
NOISE = 0.1  # largest standard deviation of noise on the pictures it learns from


class CaptionFeatures(ClassifierFeatures):
    """32 features of coloured 8x8 digits, and 22 outputs: 10 digits, 6 colours, 6 grounds.

    The classifier learns from training digits of `CaptionedDigits` with any of the 300 captions, held-out ones too.
    With `keep_learned` it is trained once, and read from the user's cache afterwards.

    Args:
        split_seed: of the data, whose held-out digits it does not see.

    Raises:
        ValueError: by `prepare` for other samples than coloured 8x8 images.
    """

    def __init__(self, split_seed: int = 0) -> None:
        super().__init__()
        self.split_seed = split_seed

    def fit(self, x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        if tuple(x.sample_shape) != (3, 8, 8):
            raise ValueError(f"CaptionFeatures reads coloured 8x8 digits: got samples {list(x.sample_shape)}")
        self._trained = _told(seed)
        with torch.inference_mode(False):
            self.classifier = _trained(self.split_seed, seed, self.device)

    def fit_again(
        self, learned: Mapping[str, Tensor], x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int
    ) -> None:
        self._trained = _told(seed)
        with torch.inference_mode(False):
            self.classifier = ConvClassifier(3, sum(PARTS), 8, WIDTH).eval().requires_grad_(False).to(self.device)
            self.classifier.load_state_dict({name.removeprefix("classifier."): v for name, v in learned.items()})

    @torch.no_grad()
    def read_parts(self, x: Tensor) -> Tensor:
        """Digit, colour and ground that it reads from images [n, 3, 8, 8], int64 [n, 3] on the extractor's device."""
        return self.parts_of(self.extract(x))

    def classify(self, features: Tensor) -> Tensor:
        """The caption's number int64 [n], -1 where colour and ground are read as the same."""
        return caption_numbers(self.parts_of(features))

    @torch.no_grad()
    def parts_of(self, features: Tensor) -> Tensor:
        """The same of its own features [n, 32]."""
        raw = features.to(self.device) * self.scale + self.mean
        logits = self.classifier.head(F.silu(raw))
        return torch.stack([part.argmax(1) for part in logits.split(PARTS, dim=1)], dim=1)


def _told(seed: int) -> str:
    return f"for {STEPS:,} steps on captioned digits with seed {seed}"


def _trained(split_seed: int, seed: int, device: torch.device) -> ConvClassifier:
    """A classifier of the three parts; the same seed and number of threads give the same weights on a CPU."""
    digits, _ = digit_splits(split_seed)
    ink, parts = (digits.x + 1) / 2, caption_parts()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConvClassifier(3, sum(PARTS), 8, WIDTH).to(device)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    per_digit = len(parts) // PARTS[0]
    with torch.enable_grad():
        for _ in range(STEPS):
            chosen = torch.randint(len(ink), (BATCH,), generator=draw)
            numbers = digits.classes[chosen] * per_digit + torch.randint(per_digit, (BATCH,), generator=draw)
            x = paint(ink[chosen], numbers)
            x = x + torch.randn(x.shape, generator=draw) * NOISE * torch.rand(BATCH, 1, 1, 1, generator=draw)
            logits = model(x.to(device)).split(PARTS, dim=1)
            wanted = parts[numbers].to(device).unbind(1)
            loss = torch.stack([F.cross_entropy(one, part) for one, part in zip(logits, wanted, strict=True)]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)

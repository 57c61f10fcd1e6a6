"""Rewards that read a sample's prompt: which one it was, and how well the judge of captioned digits finds it drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.core.distributed import same_on_all_ranks
from fdistill.data import CaptionedDigits, GenerativeDataModule
from fdistill.data.captioned_digits import PARTS, caption_parts, captions
from fdistill.evaluation.features import CaptionFeatures
from fdistill.models.condition import Condition, Conditioned, Takes, count_classes, declared
from fdistill.objectives.advantages import condition_keys
from fdistill.objectives.rewards import Reward


class PromptReward(Reward):
    """Base of the rewards that read prompts.

    The condition of a network is what text encoders made of a prompt. Which prompt that was, the run's data tell
    (`prepare`), or who encoded it (`know`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[int, str] = {}

    def check_takes(self, takes: Takes) -> None:
        if not takes or count_classes(takes):
            raise ValueError(
                f"{type(self).__name__} reads each sample's prompt: expected a network that takes prompts, got one of "
                f"{declared(takes)}"
            )

    def know(self, condition: Conditioned, texts: Sequence[str]) -> None:
        """Remember the prompts of these conditions, one text each."""
        keys = condition_keys(Condition.of(condition, {}), len(texts)).tolist()
        self._texts.update(zip(keys, texts, strict=True))

    def prepare(self, data: GenerativeDataModule) -> None:
        """Read all prompts of the data, where none is known yet; of each a number and its text are kept."""
        for condition, texts in data.prompts_in_parts() if not self._texts else ():
            self.know(condition, texts)

    def texts(self, condition: Conditioned, n: int) -> list[str]:
        """The prompts of n samples.

        Raises:
            ValueError: for samples without a prompt, or prompts that are none of the data's.
        """
        condition = Condition.of(condition, {})
        found = [self._texts.get(key) for key in condition_keys(condition, n).tolist()] if condition.length == n else []
        known = [text for text in found if text is not None]
        if len(known) < n:
            raise ValueError(
                f"{type(self).__name__} reads each sample's prompt: expected those of the run's data, got {n} samples "
                f"of which {len(known)} have one; give data with prompts to a network that takes them"
            )
        return known


class CaptionReward(PromptReward):
    """ln of the probability that digit, colour and ground are those of the caption, by a judge of `CaptionedDigits`.

    The judge learns from training digits in any of the 300 captions, with a seed of its own; measure by one of another
    seed. The same seed gives the same judge, and it is kept in the user's cache; of several ranks all use the first's.
    """

    def __init__(self, seed: int = 0) -> None:
        """Args:
        seed: of the judge's training.
        """
        super().__init__()
        self.seed, self.features = seed, CaptionFeatures().keep_learned()

    def prepare(self, data: GenerativeDataModule) -> None:
        """Read the captions, and train the judge on this module's device.

        Raises:
            ValueError: for other data than captioned digits.
        """
        if not isinstance(data, CaptionedDigits):
            raise ValueError(f"CaptionReward judges captions of CaptionedDigits: got {type(data).__name__}")
        super().prepare(data)
        self.features.split_seed = data.split_seed
        self.features.prepare(data.train_samples, data.train_samples.labels, data.num_classes, self.seed)
        same_on_all_ranks(self.features)

    def forward(self, x: Tensor, condition: Conditioned) -> Tensor:
        """[B] <= 0 of colour images [B, 3, 8, 8], in float32 whatever the precision of the networks.

        Raises:
            ValueError: before `prepare`, for samples without a caption, or other texts.
        """
        judge = self.features.classifier
        if judge is None:
            raise ValueError("CaptionReward has a judge once it has seen the run's data: call prepare(data)")
        numbers = {text: number for number, text in enumerate(captions())}
        texts = self.texts(condition, len(x))
        if not numbers.keys() >= set(texts):
            other = next(text for text in texts if text not in numbers)
            raise ValueError(f"captions are like {next(iter(numbers))!r}: got {other!r}")
        wanted = caption_parts()[[numbers[text] for text in texts]].to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            logits = judge(x.to(judge.head.weight.dtype)).split(PARTS, dim=1)
        chances = [
            part.log_softmax(1).gather(1, one[:, None]) for part, one in zip(logits, wanted.unbind(1), strict=True)
        ]
        return torch.cat(chances, 1).sum(1)

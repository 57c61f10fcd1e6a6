"""Best-of-N sampling: of N candidates for each sample the one of the largest reward is kept; it needs no training."""

import json
import math
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdistill.core.random import fold_seed
from fdistill.core.spec import public_path, subclasses
from fdistill.data import GenerativeDataModule, remembered_data
from fdistill.models.condition import Condition
from fdistill.objectives.rewards import Reward
from fdistill.sampling.draw import Labels, conditions, draw, finished
from fdistill.sampling.first_step import with_first_step_of
from fdistill.sampling.generator import GenerativeModel
from fdistill.training.judging import judged

_AT_ONCE = 256  # images that are judged together


class BestOf(NamedTuple):
    """The kept samples, and what keeping them did.

    Attributes:
        samples: float32 [n, *image_shape] on the CPU, images in [-1, 1].
        chosen: which candidate each one is, int64 [n] in [0, N).
        rewards: of the kept samples, by name, float32 [n].
        plain: of the first candidates, which are the samples of the same seed without a choice.
        kl: see `best_of_kl`.
    """

    samples: Tensor
    chosen: Tensor
    rewards: dict[str, Tensor]
    plain: dict[str, Tensor]
    kl: float


def best_of(
    model: GenerativeModel,
    n: int,
    candidates: int,
    reward: Reward | str,
    seed: int = 0,
    labels: Labels | Condition = None,
    first_step: GenerativeModel | None = None,
    data: GenerativeDataModule | None = None,
) -> BestOf:
    """n samples, each the best of so many candidates of its condition.

    The first candidates are those of `draw` with the same seed. Candidates are drawn n at a time, and of each only its
    reward is kept; the winners are then made once more, so that n samples cost n (candidates + 1) ones.

    Args:
        model: as `load` or `distill` gives it.
        n: how many samples, >= 1.
        candidates: N, >= 1.
        reward: judges images clamped to [-1, 1]; or the name of its class, as "Brightness".
            A `RewardSum` is one of z-scores over all candidates.
        seed: of the noise.
        labels: as of `draw`.
        first_step: as of `draw`.
        data: what a reward is fitted to that has to be; the model's own where not given and known.

    Raises:
        ValueError: for numbers or labels out of range, samples that are not finite, or a reward that raises, is not
            finite, or not one number a sample.
    """
    if not isinstance(candidates, int) or candidates < 1:
        raise ValueError(f"the best of N candidates is one of at least 1: got N = {candidates!r}")
    model = model if first_step is None else with_first_step_of(model, first_step)
    given = conditions(model, n, labels)
    reward = named_reward(reward) if isinstance(reward, str) else reward
    _prepare(reward, model, data)
    condition = Condition() if given is None else model.condition(given, n)
    seeds = [seed, *(fold_seed(seed, candidate) for candidate in range(1, candidates))]
    scores = []
    for own in seeds:
        images = draw(model, n, own, condition)
        scores.append(judged(reward, images, condition, None, model.device, _AT_ONCE)[0].cpu())
    chosen = reward.total(torch.cat(scores)).reshape(candidates, n).argmax(0)
    noise = torch.empty(n, *model.latent_shape)
    for candidate in chosen.unique().tolist():
        rows = chosen == candidate
        noise[rows] = model.noise(n, seeds[candidate])[rows]
    kept = torch.stack(scores)[chosen, torch.arange(n)]
    rewards, plain = (dict(zip(reward.parts(), of.unbind(1), strict=True)) for of in (kept, scores[0]))
    return BestOf(finished(model, noise, condition), chosen, rewards, plain, best_of_kl(candidates))


def best_of_kl(candidates: int) -> float:
    """ln N - (N - 1) / N: the KL divergence of the best of N samples from one (arXiv 2204.05862), >= 0.

    It is exact, for each condition, where rewards are continuous: the best has N F(r)^(N - 1) times the density of one,
    F being the distribution function of the reward. With ties it is an upper bound.
    """
    return math.log(candidates) - (candidates - 1) / candidates


def named_reward(given: str | dict[str, Any]) -> Reward:
    """The reward of a class name, or of class_path and init_args; of a class that is imported here.

    Raises:
        ValueError: for something else, or arguments that it does not take.
    """
    from fdistill.objectives import image_rewards, pretrained_rewards  # noqa: F401  # to be found by name

    if isinstance(given, str) and not re.fullmatch(r"[\w.]+", given):
        try:
            json.loads(given)
        except ValueError as error:
            raise ValueError(
                f"a reward is the name of a class, or JSON with its class_path: {error}, in {given!r:.100}"
            ) from None

    paths = {found.__name__: public_path(found) for found in subclasses(Reward)}
    return Reward.from_spec(_with_paths({"class_path": given} if isinstance(given, str) else given, paths))


def _with_paths(given: Any, paths: dict[str, str]) -> Any:
    """The description with whole class paths, also of objects among the arguments."""
    if isinstance(given, list):
        return [_with_paths(value, paths) for value in given]
    if not isinstance(given, dict):
        return given
    inside = {name: _with_paths(value, paths) for name, value in given.items()}
    name = given.get("class_path")
    return {"init_args": {}, **inside, "class_path": paths.get(name, name)} if isinstance(name, str) else inside


def _prepare(reward: Reward, model: GenerativeModel, data: GenerativeDataModule | None) -> None:
    """Fit the reward to the data, where it reads some; the model may remember its own."""
    reward.check_takes(model.denoiser.takes)
    if any(type(part).prepare is not Reward.prepare for part in reward.parts().values()):
        real = remembered_data(model.facts) if data is None and "data" in model.facts else data
        if real is not None:
            reward.prepare(real.in_pixels(model.device))
    reward.to(model.device).requires_grad_(False).eval()

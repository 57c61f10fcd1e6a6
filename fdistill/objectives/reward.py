"""Rewards in a distillation: L - beta r(x) of the generated sample, or a teacher that is tilted towards the reward."""

import itertools

import torch
from torch import Tensor, nn

from fdistill.core.distributed import together
from fdistill.data import GenerativeDataModule
from fdistill.objectives.adversarial import check_weight, is_on
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss, Term, expand, required
from fdistill.objectives.rewards import Reward, worth
from fdistill.theory.schedules import Schedule, value_at


class WithReward(Objective):
    """Base of the objectives that are another objective and a differentiable reward.

    The reward sees decoded images, clamped to [-1, 1], as it does while a teacher is tuned; other samples as they are.
    """

    def __init__(self, objective: Objective, reward: Reward, beta: float | Schedule) -> None:
        check_weight("beta", beta)
        if not reward.is_differentiable:
            raise ValueError(
                f"a student descends the gradient of its reward: {type(reward).__name__} has none; tune the teacher by "
                "it (RewardTuningModule) and distil that, or take the best of N samples (fdistill sample --best_of N)"
            )
        self.objective, self.reward, self.beta = objective, reward, beta

    @property
    def needs(self) -> Needs:
        return self.objective.needs

    def at(self, update: int) -> Objective:
        now = self.objective.at(update)
        return self if now is self.objective else type(self)(now, self.reward, self.beta)

    def networks(self) -> tuple[nn.Module, ...]:
        return (*self.objective.networks(), self.reward)

    def prepare(self, data: GenerativeDataModule) -> None:
        self.objective.prepare(data)
        tensors = itertools.chain(self.reward.parameters(), self.reward.buffers())
        self.reward.prepare(data.in_pixels(next((tensor.device for tensor in tensors), "cpu")))

    def worth(self, x: Tensor, at: NoisedSamples) -> Tensor:
        """The reward [B] of samples x [B, *sample_shape], with a graph to them.

        Raises:
            ValueError: on every rank, where the reward of any rank's samples raises or has another shape.
        """
        images = x if at.decoder is None else at.decoder.differentiable(x)
        images = images.clamp(-1, 1) if images.ndim == 4 else images
        return together(lambda: worth(type(self.reward).__name__, self.reward, images, at.condition))


class RewardAugmented(WithReward):
    """Another objective, less beta times a differentiable reward (Diff-Instruct++, arXiv 2410.18881).

    Like the other losses the reward counts per entry of a sample, so that beta means the same for every image size. For
    reverse KL with the normaliser c of one vanishing noise level sigma the optimum is the tilted law p(x) exp(k r(x)) /
    Z with k = beta / (c sigma^2).
    """

    def __init__(self, objective: Objective, reward: Reward, beta: float | Schedule) -> None:
        """Args:
        objective: what is descended beside the reward.
        reward: r(x, condition), larger is better.
        beta: >= 0; large values leave the teacher's law.
        """
        super().__init__(objective, reward, beta)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        matching = self.objective.loss(at)
        if is_on(self.beta):
            cost = -self.worth(at.x, at) / at.x[0].numel()
            matching.terms["reward"] = Term(cost, value_at(self.beta, at.update))
        return matching


class TiltedTeacher(WithReward):
    """Another objective, whose teacher is the law p(x) exp(beta r(x)) / Z in place of p.

    The score of that law is the teacher's and grad ln E[exp(beta r(x_0)) | x_t]. Here the reward is taken at the mean
    of x_0 (as in arXiv 2209.14687): D + beta sigma^2 grad r(D), the gradient being that by x_t through the teacher.
    That is exact for a linear reward of a Gaussian law, and for every other as sigma vanishes; at each level it is
    the score of p_t exp(beta r(D)) / Z. Samples and denoised ones are in variance-exploding coordinates, so that
    sigma^2 is the factor on every path.
    """

    def __init__(self, objective: Objective, reward: Reward, beta: float | Schedule) -> None:
        """Args:
        objective: how the tilted teacher is matched; without a density ratio, which a discriminator learns of the
            data, and these are not tilted.
        reward: r(x, condition), larger is better.
        beta: >= 0; of the whole sample's reward, not per entry.
        """
        super().__init__(objective, reward, beta)
        needs = objective.needs
        if needs.ratio or needs.teacher == "nothing":
            raise ValueError(
                "a tilted teacher is matched by its score alone: expected an objective that reads the teacher, such as "
                f"DMD2, and weighs by no density ratio of the data, got {type(objective).__name__}; use reverse KL, or "
                "RewardAugmented"
            )

    @property
    def needs(self) -> Needs:
        return self.objective.needs._replace(teacher="gradient")

    def loss(self, at: NoisedSamples) -> StudentLoss:
        needs, teacher = self.objective.needs, required(at.teacher)
        through, beta = needs.teacher == "gradient", value_at(self.beta, at.update)
        worth = self.worth(teacher, at)
        (uphill,) = torch.autograd.grad(worth.sum(), at.x_t, create_graph=through, retain_graph=True)
        tilted = teacher + expand(beta * at.sigma.square(), teacher) * uphill
        seen = at._replace(teacher=tilted if through else tilted.detach())
        matching = self.objective.loss(seen if needs.input_gradient else seen._replace(x_t=at.x_t.detach()))
        matching.terms.setdefault("reward", Term(-worth.detach(), 0.0))  # for the log, and named where it is NaN
        return matching

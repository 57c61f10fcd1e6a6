"""Reward-augmented distillation: L - beta r(x), the reward of the generated sample itself."""

from torch import nn

from fdistill.data import GenerativeDataModule
from fdistill.objectives.adversarial import check_weight, is_on
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss, Term
from fdistill.objectives.rewards import Reward
from fdistill.theory.schedules import Schedule, value_at


class RewardAugmented(Objective):
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
        check_weight("beta", beta)
        if not reward.is_differentiable:
            raise ValueError(
                f"a student descends the gradient of its reward: {type(reward).__name__} has none; tune the teacher by "
                "it (RewardTuningModule), and distil that"
            )
        self.objective, self.reward, self.beta = objective, reward, beta

    @property
    def needs(self) -> Needs:
        return self.objective.needs

    def at(self, update: int) -> Objective:
        now = self.objective.at(update)
        return self if now is self.objective else RewardAugmented(now, self.reward, self.beta)

    def networks(self) -> tuple[nn.Module, ...]:
        return (*self.objective.networks(), self.reward)

    def prepare(self, data: GenerativeDataModule) -> None:
        self.objective.prepare(data)
        self.reward.prepare(data)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        matching = self.objective.loss(at)
        if is_on(self.beta):
            cost = -self.reward(at.x, at.condition) / at.x[0].numel()
            matching.terms["reward"] = Term(cost, value_at(self.beta, at.update))
        return matching

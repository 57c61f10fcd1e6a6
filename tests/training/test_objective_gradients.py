"""The student's update is the derivative of each published scalar loss, from its weights through both networks."""

import functools

import pytest
import torch
from objective_runs import learning_by
from tiny_runs import Recorded, fit, mlp, ring, weights
from torch.nn import functional as F

from fdistill.evaluation.metrics import monge_gap
from fdistill.objectives import (
    SIM,
    VSD,
    Adversarial,
    DiffInstruct,
    Fisher,
    MongeRegularised,
    RewardAugmented,
    SiD,
    SiDA,
    UniInstruct,
)
from fdistill.objectives.rewards import TargetReward
from fdistill.theory.divergences import JensenShannon

BINS, C, GUIDANCE = 5, 0.03, 1.5


class Problem:
    """What the networks say at the student's noised samples, everything with its graph to the student's weights."""

    def __init__(self, module, batch):
        generated = module._generate(batch, next(module.micro_batches(len(batch.x))), True)
        self.module, self.x, self.sigma, self.labels = (
            module,
            generated.x,
            generated.sigma,
            generated.condition["labels"],
        )
        self.latents, self.x_t = generated.latents, self.x + (generated.x_t - self.x).detach()
        without, with_class = (
            module.teacher(self.x_t, self.sigma, labels) for labels in (torch.full_like(self.labels, 2), self.labels)
        )
        self.d_p = without + GUIDANCE * (with_class - without)
        self.d_q = module.fake_score(self.x_t, self.sigma, self.labels) if module.fake_score is not None else None

    @property
    def by_sigma(self):
        return (self.sigma**2 + 1).sqrt() / self.sigma

    @property
    def by_sample(self):
        return 1 / (self.x - self.d_p).abs().mean(1).detach()

    def logit(self):
        source = {"teacher": self.module.teacher, "fake_score": self.module.fake_score}[self.module.reads]
        return self.module.ratio.discriminator(source.encode(self.x_t, self.sigma, self.labels).features)

    def ratio(self):
        """p/q with mean 1 in every noise bin of this batch."""
        raw = self.logit().detach().exp().clamp(0.1, 20)
        bins = (torch.distributions.Normal(-0.5, 1.0).cdf(self.sigma.log()) * BINS).long()
        return raw / torch.stack([raw[bins == b].mean() for b in range(BINS)])[bins]


def dot(a, b):
    return (a * b).sum(1)


def sid(problem, alpha, omega):
    delta = problem.d_p - problem.d_q
    return (omega * dot(delta, problem.d_p - problem.x - alpha * delta) / 2).mean()  # 2 entries a sample


def sim(problem):
    y = problem.d_q - problem.d_p
    slope = y / (y.square().mean(1, keepdim=True) + C**2).sqrt()
    return -(slope * (problem.d_q - problem.x)).mean()


def uni_instruct(problem, bounded):
    """The four terms of Jensen-Shannon, psi = r / (1 + r), in scores; times sigma^4, omega and 1 / entries."""
    r, variance = problem.ratio(), problem.sigma**2
    psi, r_psi_1, r2_psi_2 = r / (1 + r), r / (1 + r) ** 2, -2 * r**2 / (1 + r) ** 3
    delta, u = (problem.d_p - problem.d_q) / variance[:, None], (problem.d_q - problem.x) / variance[:, None]
    bracket = (2 * r_psi_1 * dot(delta, u) - r2_psi_2 * dot(delta, delta)).detach() * variance  # without a unit
    bracket = bracket if not bounded else (bracket / psi.mean()).clamp(-1, 1) * psi.mean()
    terms = 2 * psi * dot(delta, u) + (psi - r_psi_1) * dot(delta, delta)
    terms = terms + bracket / variance * dot(delta.detach(), problem.x_t)
    return (problem.by_sigma * variance**2 * terms / psi.mean() / 2).mean()


def adversarial(problem, weight):
    return weight * F.softplus(-problem.logit()).mean()


def di(problem, omega):
    return (omega[:, None] * (problem.d_q - problem.d_p).detach() * problem.x).mean()


REWARD = TargetReward([1.0, -1.0])
LOSSES = {
    "SiD": (lambda: SiD(1.2), "teacher", lambda p: sid(p, 1.2, p.by_sample)),
    "SiD by noise level": (lambda: SiD(0.7, "sigma"), "teacher", lambda p: sid(p, 0.7, p.by_sigma)),
    "Fisher": (Fisher, "teacher", lambda p: sid(p, 0.5, p.by_sigma)),
    "SIM": (lambda: SIM(C), "teacher", sim),
    "SiDA": (
        lambda: SiDA(0.4),
        "fake_score",
        lambda p: sid(p, 1.0, p.by_sample) + adversarial(p, 0.4),
    ),
    "Uni-Instruct": (
        lambda: UniInstruct(JensenShannon(), "exact"),
        "teacher",
        functools.partial(uni_instruct, bounded=False),
    ),
    "Uni-Instruct, clipped": (
        lambda: UniInstruct(JensenShannon()),
        "fake_score",
        functools.partial(uni_instruct, bounded=True),
    ),
    "Adversarial": (lambda: Adversarial(2.0), "teacher", lambda p: adversarial(p, 2.0)),
    "Diff-Instruct": (DiffInstruct, "teacher", lambda p: di(p, torch.ones_like(p.sigma))),
    "VSD": (VSD, "teacher", lambda p: di(p, p.sigma / (1 + p.sigma**2))),
    "SiD with a reward": (
        lambda: RewardAugmented(SiD(), REWARD, 0.3),
        "teacher",
        lambda p: sid(p, 1.2, p.by_sample) - 0.3 * REWARD(p.x).mean() / 2,
    ),
    "Diff-Instruct on short ways": (
        lambda: MongeRegularised(DiffInstruct(), 0.3, 1.0),
        "teacher",
        lambda p: di(p, torch.ones_like(p.sigma)) + 0.3 * monge_gap(p.latents, p.x, 1.0, p.labels) / 2,
    ),
}


@pytest.mark.parametrize("turn", ["fused", "alternating"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_student_descends_the_published_loss(name, turn):
    build, discriminator, loss = LOSSES[name]
    objective, still = build(), functools.partial(Recorded, lr=0.0)
    module = learning_by(
        objective,
        teacher=mlp(num_classes=2),
        student=mlp(num_classes=2, seed=1),
        fake_score=None if objective.needs.fake_score == "nothing" else mlp(num_classes=2, seed=2),
        guidance=GUIDANCE,
        discriminator=discriminator,
        turn=turn,
        fake_updates_per_student=1,
        ratio_bins=BINS,
        ratio_decay=0.0,
        gradient_clip=1e9,
        student_optimizer=Recorded,
        fake_score_optimizer=still,
    )
    data, turns = ring(batch_size=64), 1 if turn == "fused" else 2
    batches = iter(data.train_dataloader())
    batch = [next(batches) for _ in range(turns)][-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module), "global_step", turns - 1)
        expected = torch.autograd.grad(
            loss(Problem(module, batch)), list(module.student.parameters()), allow_unused=True
        )
    before = weights(module)
    fit(module, turns, data)
    for (parameter_name, now), truth in zip(module.student.named_parameters(), expected, strict=True):
        found = before[f"student.{parameter_name}"] - now.detach()
        torch.testing.assert_close(
            found, truth, rtol=2e-3, atol=2e-6, msg=lambda text, n=parameter_name: f"{n}: {text}"
        )
    assert max(float(truth.abs().max()) for truth in expected) > 1e-3

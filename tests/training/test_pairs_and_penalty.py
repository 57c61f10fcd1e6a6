"""Two terms beside the matching: regression to a teacher's pairs, and the penalty on the discriminator's slope."""

import functools

import pytest
import torch
from objective_runs import Asking, learning_by
from test_objectives_in_turns import Losses
from tiny_runs import GivenData, Recorded, adam, distillation, exact, fit, mlp, ring, weights
from torch import nn

from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.objectives import DMD, Adversarial, DiffInstruct, FDistill, Objective, SiD
from fdistill.objectives.base import Needs, StudentLoss
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.divergences import JensenShannon

MEAN, STD = torch.tensor([1.0, -0.5]), 0.5


@pytest.fixture(scope="module")
def gaussian_pairs(tmp_path_factory):
    """Pairs of an exact Gaussian teacher: an affine map of the latents."""
    teacher = GenerativeModel.teacher(exact([MEAN.tolist()], [STD]), num_steps=40, sigma_min=0.002, sigma_max=80.0)
    return str(TeacherPairs.make(teacher, 512, seed=3).save(tmp_path_factory.mktemp("pairs") / "gaussian.safetensors"))


@pytest.mark.slow
def test_by_regression_alone_the_student_fits_the_pairs(gaussian_pairs):
    pairs = TeacherPairs.load(gaussian_pairs)
    torch.testing.assert_close(pairs.samples, MEAN + STD * pairs.latents, rtol=0, atol=0.04)
    module = distillation(
        exact([MEAN.tolist()], [STD]),
        DMD(regression_weight=1e6),  # matching is forgotten
        student=mlp(),
        fake_score=mlp(seed=1),
        pairs=gaussian_pairs,
        student_optimizer=functools.partial(adam, lr=5e-3),
        ema_decay=0.9,
    )

    def error():
        return float((module.generative_model().sample(pairs.latents) - pairs.samples).square().mean())

    before = error()
    fit(module, 300, ring(batch_size=128))
    assert error() < 0.01 * before


@pytest.mark.parametrize("levels", [(), (0.5,)])
def test_the_regression_is_the_mean_squared_error_of_one_step_at_the_pairs(gaussian_pairs, levels):
    ends = []
    for weight in (1.0, 3.0):
        module = learning_by(
            objective := DMD(weight),
            pairs=gaussian_pairs,
            renoise_levels=levels,
            gradient_clip=1e9,
            student_optimizer=Recorded,
            fake_score_optimizer=Recorded,
        )
        asking, before = Asking(objective), weights(module)
        fit(module, 1)
        after = weights(module)
        ends.append({name: before[name] - after[name] for name in after if name.startswith("student.")})
    regression, pairs = asking.seen[0].regression, TeacherPairs.load(gaussian_pairs)
    rows = [int((pairs.samples == target).all(1).nonzero()) for target in regression.target]
    student = mlp(seed=1)
    made = student(2.0 * pairs.latents[rows], torch.full((len(rows),), 2.0))
    torch.testing.assert_close(made, regression.x)
    expected = torch.autograd.grad((made - regression.target).square().mean(), list(student.parameters()))
    for (name, three), truth in zip(ends[1].items(), expected, strict=True):
        torch.testing.assert_close((three - ends[0][name]) / 2, truth, rtol=2e-3, atol=1e-6)


def test_each_pair_is_regressed_under_its_own_class(tmp_path):
    generator = torch.Generator().manual_seed(0)
    latents, samples = torch.randn(2, 64, 2, generator=generator)
    classes = torch.randint(3, (64,), generator=generator)
    file = str(TeacherPairs(latents, samples, classes, {}).save(tmp_path / "pairs.safetensors"))
    data = GivenData(torch.randn(64, 2, generator=generator), num_classes=3, batch_size=16)
    networks = {"teacher": mlp(num_classes=3), "student": mlp(num_classes=3, seed=1)}
    module = learning_by(objective := DMD(), pairs=file, **networks)
    asking = Asking(objective)
    fit(module, 1, data)
    regression, student = asking.seen[0].regression, mlp(num_classes=3, seed=1)
    rows = [int((samples == target).all(1).nonzero()) for target in regression.target]
    assert len(classes[rows].unique()) == 3
    level = torch.full((len(rows),), 2.0)
    torch.testing.assert_close(student(2.0 * latents[rows], level, classes[rows]), regression.x)
    for wrong in (classes[rows].roll(1), (classes[rows] + 1) % 3, torch.full_like(classes[rows], 3)):
        assert not torch.allclose(student(2.0 * latents[rows], level, wrong), regression.x, atol=1e-3)


class Idle(Objective):
    """Asks for nothing."""

    @property
    def needs(self):
        return Needs()

    def loss(self, at):
        return StudentLoss({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": DMD()}, "TEACHER"),
        ({"objective": DiffInstruct(), "pairs": "any"}, "DiffInstruct"),
        ({"objective": DMD(), "pairs": "nowhere"}, "nowhere"),
        ({"objective": FDistill(JensenShannon()), "discriminator": "none"}, "FDistill"),
        ({"objective": Adversarial(), "discriminator": "none"}, "Adversarial"),
        (
            {"objective": SiD(), "r1_weight": 1.0},
            "SiD",
        ),
        ({"objective": Adversarial(), "r1_weight": -1.0}, "finite"),
        ({"objective": Adversarial(), "r1_step": float("nan")}, "finite"),
        ({"objective": Idle()}, "fake"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_an_objective_without_what_it_needs_is_refused_when_it_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        distillation(**changes)


def test_pairs_of_other_samples_or_classes_are_refused(gaussian_pairs):
    with pytest.raises(ValueError, match="samples"):
        distillation(mlp(dim=3), DMD(), pairs=gaussian_pairs)
    with pytest.raises(ValueError, match="labels"):
        distillation(mlp(num_classes=2), DMD(), pairs=gaussian_pairs)


class LinearLogit(nn.Module):
    """<w, x>, whatever the noise level: its slope is w everywhere."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -2.0]))

    def forward(self, x, sigma, labels, sigma_data):
        return x @ self.w


def with_linear_logit(turn, **changes):
    module = learning_by(
        FDistill(JensenShannon(), 0.3),
        discriminator="sample",
        turn=turn,
        gradient_clip=1e9,
        student_optimizer=Recorded,
        fake_score_optimizer=Recorded,
        **changes,
    )
    module.ratio.discriminator = LinearLogit()
    return module


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_the_penalty_of_a_linear_logit_is_its_closed_form_and_pulls_at_the_discriminator_alone(turn):
    plain, penalised, losses = with_linear_logit(turn), with_linear_logit(turn, r1_weight=0.6), Losses()
    w, sigma = (
        LinearLogit().w.detach(),
        plain._generate(next(iter(ring().train_dataloader())), next(plain.micro_batches(32)), turn == "fused").sigma,
    )
    fit(plain, 1)
    fit(penalised, 1, logger=losses, log_every_n_steps=1)
    scale = (sigma.square() + 1).mean()  # sigma_data is 1
    assert losses.values["loss/r1", 0] == pytest.approx(float(0.3 * scale * w.square().sum()), rel=1e-5)
    one, other = weights(plain), weights(penalised)
    pulled = one.pop("ratio.discriminator.w") - other.pop("ratio.discriminator.w")
    torch.testing.assert_close(pulled, 0.6 * scale * w, rtol=1e-5, atol=1e-6)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("discriminator", ["teacher", "fake_score", "sample"])
@pytest.mark.parametrize("step", [0.0, 0.01])
def test_the_penalty_is_the_same_number_under_bf16(discriminator, step):
    """A finite difference of bf16 logits would be noise."""
    found = []
    for precision in ("32-true", "bf16-mixed"):
        module, losses = learning_by(Adversarial(), discriminator=discriminator, r1_weight=1.0, r1_step=step), Losses()
        before = weights(module)
        fit(module, 1, logger=losses, log_every_n_steps=1, precision=precision)
        found.append(losses.values["loss/r1", 0])
        assert not all(torch.equal(value, before[name]) for name, value in weights(module).items())
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[0] > 0

"""Rewards are what they say: log likelihoods with exact gradients, fitted alike by a seed, refused in one line."""

import copy
import json

import pytest
import torch
from tiny_runs import GivenData
from torch.testing import assert_close

from fdistill.data import Digits, GaussianMixtureData, LatentsOnly
from fdistill.objectives.rewards import ClassifierReward, Reward, TargetReward


class Brightness(Reward):
    """A user's own."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x, labels):
        return self.scale * x.flatten(1).mean(dim=1)


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def asked(digits):
    """Scores the class that was asked for."""
    reward = ClassifierReward(epochs=4)
    reward.prepare(digits)
    return reward


def gradient(reward, x, labels=None):
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(reward(x, labels).sum(), x)
    return found


def test_a_tilt_by_the_target_reward_makes_of_a_gaussian_the_gaussian_of_summed_precisions():
    mean, target, variance, beta = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double(), 0.25, 3.0
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score = (mean - x) / variance + beta * gradient(TargetReward(target.tolist()), x)
    precision = 1 / variance + beta
    assert_close(score, precision * ((mean / variance + beta * target) / precision - x))


def test_the_target_itself_is_worth_zero_and_all_else_less():
    target = torch.arange(4.0).reshape(1, 2, 2)
    reward = TargetReward(target.tolist())
    assert float(reward(target[None], None)) == 0
    assert (reward(target + torch.eye(4).reshape(4, 1, 2, 2), None) == -0.5).all()


def test_a_number_is_the_target_of_every_entry():
    x = torch.randn(5, 1, 3, 3)
    assert_close(TargetReward(0.5)(x, None), TargetReward([[[0.5] * 3] * 3])(x, None))


def test_a_float64_sample_has_a_float64_reward():
    assert TargetReward(0.5)(torch.zeros(2, 3, dtype=torch.float64), None).dtype == torch.float64


def test_probabilities_of_all_classes_add_to_one(asked, digits):
    x = digits.held_out_samples.copied().x[:20]
    total = sum(asked(x, torch.full((20,), label)).exp() for label in range(10))
    assert_close(total, torch.ones(20))


def test_unseen_digits_are_worth_more_as_what_they_are_than_as_any_other(asked, digits):
    x, labels, _ = digits.held_out_samples.copied()
    worth = torch.stack([asked(x, torch.full_like(labels, label)) for label in range(10)], dim=1)
    assert (worth.argmax(1) == labels).double().mean() > 0.8


def test_the_gradient_at_the_sample_is_that_of_the_value_and_no_weight_has_one(asked, digits):
    exact = copy.deepcopy(asked).double()
    labels = torch.tensor([3, 8])
    x = digits.held_out_samples.copied().x[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: exact(x, labels), x)
    assert not any(parameter.requires_grad for parameter in asked.parameters())


def test_ascent_makes_a_digit_the_asked_one(asked, digits):
    x, labels = digits.held_out_samples.copied().x[:16], torch.full((16,), 7)
    before = asked(x, labels)
    for _ in range(30):
        x = x + 0.1 * gradient(asked, x, labels)
    assert (asked(x, labels) > before).all()
    assert (asked(x, labels).exp() > 0.5).all()


def test_each_sample_is_scored_alone(asked, digits):
    x, labels = digits.held_out_samples.copied().x[:6], digits.held_out_samples.labels[:6]
    alone = torch.cat([asked(x[i : i + 1], labels[i : i + 1]) for i in range(6)])
    assert_close(asked(x, labels), alone)


def test_a_fixed_class_is_scored_whatever_the_labels(asked, digits):
    fixed = ClassifierReward(label=4, epochs=4)
    fixed.prepare(digits)
    x, labels = digits.held_out_samples.copied().x[:9], digits.held_out_samples.labels[:9]
    expected = asked(x, torch.full((9,), 4))
    assert torch.equal(fixed(x, None), expected)
    assert torch.equal(fixed(x, labels), expected)


def test_a_seed_decides_the_classifier_and_the_global_random_state_nothing(digits):
    worth = []
    for number, seed in enumerate([0, 0, 1]):
        torch.manual_seed(number)
        reward = ClassifierReward(epochs=1, seed=seed)
        before = torch.random.get_rng_state()
        reward.prepare(digits)
        assert torch.equal(before, torch.random.get_rng_state())
        worth.append(reward(*digits.held_out_samples.copied()[:2]))
    assert torch.equal(worth[0], worth[1])
    assert not torch.allclose(worth[0], worth[2])


def test_reduced_precision_of_the_networks_does_not_reach_the_reward(asked, digits):
    x, labels = digits.held_out_samples.copied().x[:4], digits.held_out_samples.labels[:4]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = asked(x, labels)
    assert torch.equal(reduced, asked(x, labels))


@pytest.mark.parametrize("reward", [TargetReward([1.0, 2.0]), ClassifierReward(label=1, epochs=1)])
def test_all_of_a_reward_moves_with_it(reward, digits):
    if isinstance(reward, ClassifierReward):
        reward.prepare(digits)
    moved = reward.to("meta")
    assert {tensor.device.type for tensor in [*moved.parameters(), *moved.buffers()]} == {"meta"}


@pytest.mark.parametrize(
    "reward",
    [TargetReward(0.25), TargetReward([[1.0], [2.0]]), ClassifierReward(), ClassifierReward(2, 5, 7), Brightness(2.0)],
    ids=lambda reward: type(reward).__name__,
)
def test_every_reward_is_rebuilt_from_its_description(reward):
    spec = json.loads(json.dumps(reward.spec()))
    rebuilt = Reward.from_spec(spec)
    assert type(rebuilt) is type(reward)
    assert rebuilt.spec() == spec
    if not isinstance(reward, ClassifierReward):
        x = torch.randn(3, 2, 1)
        assert torch.equal(rebuilt(x, None), reward(x, None))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: TargetReward([[1.0], [2.0, 3.0]]), "target"),
        (lambda: TargetReward("bright"), "target"),
        (lambda: TargetReward(float("nan")), "finite"),
        (lambda: TargetReward([1.0, 2.0])(torch.zeros(2, 3), None), r"expected \(3,\), got \(2,\)"),
        (lambda: TargetReward([1.0, 2.0]).prepare(Digits()), r"expected \(1, 8, 8\), got \(2,\)"),
        (lambda: ClassifierReward(label=-1), "expected >= 0, got -1"),
        (lambda: ClassifierReward(epochs=0), "expected >= 1, got 0"),
        (lambda: ClassifierReward(label=10).prepare(Digits()), "expected < 10, got 10"),
        (lambda: ClassifierReward()(torch.zeros(2, 1, 8, 8), None), "data"),
        (lambda: ClassifierReward().prepare(GivenData(torch.randn(9, 1, 8, 8))), "expected at least 2, got 0"),
        (lambda: ClassifierReward().prepare(GaussianMixtureData(num_samples=99)), "images"),
        (lambda: ClassifierReward().prepare(LatentsOnly([1, 8, 8], 10)), "real"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told_in_one_line(mistake, words):
    with pytest.raises(ValueError, match=words) as error:
        mistake()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [None, torch.zeros(3, dtype=torch.int64)])
def test_the_asked_class_needs_one_label_a_sample(asked, labels):
    with pytest.raises(ValueError, match="label"):
        asked(torch.zeros(2, 1, 8, 8), labels)

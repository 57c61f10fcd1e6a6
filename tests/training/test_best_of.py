"""The best of N samples: its law by ranks, its first candidates are plain samples, mistakes are one line."""

import math

import pytest
import torch

import fdistill
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, GaussianMixture
from fdistill.objectives.image_rewards import RewardSum
from fdistill.objectives.rewards import ClassifierReward, Reward, TargetReward
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction
from fdistill.training.best_of import best_of, best_of_kl, named_reward


class First(Reward):
    """The first entry: continuous."""

    def forward(self, x, condition):
        return x[:, 0]


class Asked(Reward):
    """The first entry near ten times the class."""

    def forward(self, x, condition):
        return -(x[:, 0] - 10 * condition["labels"]).abs()


class Broken(Reward):
    def __init__(self, how="raises"):
        super().__init__()
        self.how = how

    def forward(self, x, condition):
        if self.how == "raises":
            raise RuntimeError("no such file")
        return x if self.how == "shape" else x[:, 0] * math.nan


@pytest.fixture(scope="module")
def gaussian():
    """A student whose samples are N(0, 0.8^2 I)."""
    exact = Denoiser(GaussianMixture([[0.0, 0.0]], [2.0]), X0Prediction(VarianceExploding()))
    return GenerativeModel.student(exact.float(), 4.0)


@pytest.fixture(scope="module")
def of_classes():
    torch.manual_seed(0)
    return GenerativeModel.student(Denoiser(MLP(width=8, depth=2, num_classes=3), EDM(0.5)), 4.0)


@pytest.mark.parametrize("candidates", [1, 2, 5, 64])
def test_kl_is_that_of_the_largest_of_n_uniform_ranks(candidates):
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = candidates * u ** (candidates - 1)
    expected = torch.special.entr(density).mean().neg().item()
    assert best_of_kl(candidates) == pytest.approx(expected, abs=1e-4)


def test_the_kept_samples_have_that_kl_from_the_model(gaussian):
    n, candidates, std = 4000, 5, 0.8
    kept = best_of(gaussian, n, candidates, First())
    rank = torch.distributions.Normal(0.0, std).cdf(kept.samples[:, 0])
    found = math.log(candidates) + (candidates - 1) * rank.log()
    standard_error = (candidates - 1) / candidates / n**0.5
    assert found.mean().item() == pytest.approx(kept.kl, abs=4 * standard_error)
    assert kept.samples[:, 1].std().item() == pytest.approx(std, rel=0.05)  # what is not rewarded stays
    assert torch.bincount(kept.chosen).div(n).sub(1 / candidates).abs().max() < 0.03  # no candidate is preferred


def test_first_candidates_are_the_plain_samples_and_more_candidates_are_no_worse(of_classes):
    plain = fdistill.sample(of_classes, 40, seed=3, labels=[0, 2])
    one, two, four = (fdistill.best_of(of_classes, 40, n, First(), 3, [0, 2]) for n in (1, 2, 4))
    assert torch.equal(one.samples, plain)
    first = four.chosen == 0
    assert 0 < first.sum() < 40
    torch.testing.assert_close(four.samples[first], plain[first])
    torch.testing.assert_close(four.plain["First"], plain[:, 0])
    torch.testing.assert_close(four.rewards["First"], four.samples[:, 0])
    assert (two.rewards["First"] >= one.rewards["First"]).all()
    assert (four.rewards["First"] >= two.rewards["First"]).all()


def test_candidates_are_of_the_condition_of_their_sample(of_classes):
    kept = best_of(of_classes, 12, 3, Asked(), labels=[2, 0])
    wanted = torch.tensor([20.0, 0.0]).repeat(6)
    torch.testing.assert_close(kept.rewards["Asked"], -(kept.samples[:, 0] - wanted).abs())


def test_a_sum_is_of_z_scores_over_all_candidates(gaussian):
    rewards = [First(), TargetReward(0.0)]
    kept = best_of(gaussian, 30, 4, RewardSum(rewards, [1.0, 2.0]))
    seeds = [best_of(gaussian, 30, n, First()).rewards["First"] for n in (1, 2, 3, 4)]
    assert set(kept.rewards) == {"First", "TargetReward"}
    assert (kept.rewards["First"] <= seeds[-1] + 1e-6).all()  # the best of First alone is no worse in First
    assert kept.rewards["TargetReward"].mean() > kept.plain["TargetReward"].mean()


def test_a_reward_is_described_by_its_name_or_its_arguments():
    assert isinstance(named_reward("First"), First)
    weighted = {"rewards": [{"class_path": "Brightness"}, {"class_path": "Smoothness"}], "weights": [1.0, -2.0]}
    built = named_reward({"class_path": "RewardSum", "init_args": weighted})
    assert (list(built.parts()), built.weights) == (["Brightness", "Smoothness"], [1.0, -2.0])
    again = named_reward(built.spec())
    assert again.spec() == built.spec()


@pytest.mark.parametrize(
    ("mistake", "word"),
    [
        (lambda model: best_of(model, 4, 0, First()), "N = 0"),
        (lambda model: best_of(model, 0, 2, First()), "positive"),
        (lambda model: best_of(model, 4, 2, Broken()), "RuntimeError"),
        (lambda model: best_of(model, 4, 2, Broken("shape")), r"expected \[4\], got \[4, 2\]"),
        (lambda model: best_of(model, 4, 2, Broken("nan")), "NaN"),
        (lambda model: best_of(model, 4, 2, Asked()), "labels"),
        (lambda model: best_of(model, 4, 2, ClassifierReward()), "takes classes"),
        (lambda model: best_of(model, 4, 2, ClassifierReward(0)), "data"),
        (lambda model: named_reward("Bright"), "Brightness"),
        (lambda model: named_reward("TargetReward"), "target"),
        (lambda model: named_reward({"beta": 1}), "class_path"),
        (lambda model: named_reward('{"class_path": "Brightness"'), "JSON with its class_path: Expecting"),
    ],
)
def test_a_mistake_is_told_in_one_line(gaussian, mistake, word):
    with pytest.raises(ValueError, match=word) as error:
        mistake(gaussian)
    assert "\n" not in str(error.value)

"""Rewards of images order what they say they order, and a sum of them knows no units."""

import sys
import types

import pytest
import torch
from torch.testing import assert_close

from fdistill.objectives import DiffInstruct, RewardAugmented
from fdistill.objectives.image_rewards import (
    Brightness,
    ChannelTarget,
    Compressibility,
    FunctionReward,
    Incompressibility,
    RewardSum,
    Smoothness,
)
from fdistill.objectives.rewards import Reward, TargetReward

FLAT, NOISE = torch.full((2, 3, 16, 16), 0.25), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_brightness_is_one_for_white_and_minus_one_for_black():
    shades = torch.tensor([1.0, -1.0, 0.25])
    assert_close(Brightness()(shades[:, None, None, None].expand(3, 1, 4, 4)), shades)


def test_a_channel_target_is_reached_by_that_colour_whatever_the_picture():
    red = torch.stack([NOISE[0, 0] - NOISE[0, 0].mean() + 0.5, -NOISE[0, 1] + NOISE[0, 1].mean(), 0 * NOISE[0, 2]])
    assert_close(ChannelTarget([0.5, 0.0, 0.0])(red[None]), torch.zeros(1))
    assert float(ChannelTarget([0.5, 0.0, 0.3])(red[None])) == pytest.approx(-0.09)


def test_a_flat_image_is_smoothest_and_a_ramp_has_its_slope():
    assert Smoothness()(FLAT).tolist() == [0, 0]
    ramp = torch.linspace(-1, 1, 5).expand(1, 2, 5, 5)
    assert float(Smoothness()(ramp)) == pytest.approx(-0.5)
    assert (Smoothness()(NOISE) < -0.3).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_flat_image_is_a_smaller_file_than_noise(channels):
    small, large = (Compressibility()(images[:, :channels]) for images in (FLAT, NOISE))
    assert (small > large).all()
    assert torch.equal(Incompressibility()(NOISE[:, :channels]), -large)
    assert (large > -16 * 16 * 3 / 1000 - 1).all()


def test_a_function_of_yours_sees_images_and_condition(monkeypatch):
    mine = types.ModuleType("my_rewards")
    mine.first = lambda images, condition: images.flatten(1)[:, 0] + condition["labels"]
    monkeypatch.setitem(sys.modules, "my_rewards", mine)
    assert FunctionReward("my_rewards.first")(FLAT, {"labels": torch.tensor([1, 2])}).tolist() == [1.25, 2.25]


def test_a_sum_compares_z_scores_so_that_units_do_not_count():
    x = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    scores = torch.stack([Brightness()(x), TargetReward(0.3)(x)], 1)
    both = RewardSum([Brightness(), TargetReward(0.3)], [1.0, -2.0])
    assert_close(both(x), both.total(scores * torch.tensor([1.0, 1000.0]) + 7))
    assert_close(both(x).mean(), torch.zeros(()), atol=1e-5, rtol=0)
    assert float(RewardSum([Brightness()], [3.0])(x).std(correction=0)) == pytest.approx(3)


@pytest.mark.parametrize(
    "reward",
    [Brightness(), ChannelTarget([0.1, 0.2, 0.3]), Smoothness(), RewardSum([Smoothness(), Brightness()], [1, 0.5])],
    ids=lambda reward: type(reward).__name__,
)
def test_each_is_rebuilt_from_its_description_and_has_a_gradient(reward):
    assert_close(Reward.from_spec(reward.spec())(NOISE, None), reward(NOISE, None))
    x = NOISE.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x, None).square().sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: ChannelTarget([]), "target"),
        (lambda: ChannelTarget([0.5])(NOISE), "channel"),
        (lambda: Smoothness()(torch.zeros(2, 5)), "2 x 2"),
        (lambda: Compressibility()(torch.zeros(2, 2, 4, 4)), "1 or 3"),
        (lambda: FunctionReward("nowhere.at_all"), "--import nowhere"),
        (lambda: FunctionReward("no_module"), "--import MODULE"),
        (lambda: RewardSum([Brightness()], [1.0, 2.0]), "2 weights"),
        (lambda: RewardSum([Brightness(), Brightness()]), "different classes"),
        (lambda: RewardAugmented(DiffInstruct(), Compressibility(), 1.0), "gradient"),
    ],
)
def test_a_mistake_is_told_in_one_line(mistake, words):
    with pytest.raises(ValueError, match=words) as error:
        mistake()
    assert "\n" not in str(error.value)

"""Advantages are z-scores among samples of one condition, whatever the units, order and number of ranks."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.condition import Condition
from fdistill.objectives.advantages import LARGEST, RunningAdvantages, condition_keys, group_advantages
from fdistill.objectives.reward_algorithms import DDPO, DiffusionNFT, FlowGRPO, MixGRPO


def drawn(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator), torch.randint(3, (n,), generator=generator)


def test_each_group_has_mean_zero_and_std_one():
    rewards, keys = drawn()
    advantages = group_advantages(rewards, keys)
    for key in range(3):
        assert float(advantages[keys == key].mean()) == pytest.approx(0, abs=1e-6)
        assert float(advantages[keys == key].std(correction=0)) == pytest.approx(1)


def test_units_of_a_group_do_not_count():
    rewards, keys = drawn()
    other = torch.where(keys == 1, 7 * rewards - 3, rewards)
    assert_close(group_advantages(other, keys), group_advantages(rewards, keys))


def test_equal_rewards_have_no_advantage_and_outliers_a_bounded_one():
    noise = 1e-7 * drawn()[0]
    assert group_advantages(0.3 + noise, torch.zeros(60, dtype=torch.int64)).abs().max() < 0.01
    one_good = torch.zeros(100).index_fill(0, torch.tensor([7]), 1.0)
    assert float(group_advantages(one_good, torch.zeros(100, dtype=torch.int64)).max()) == LARGEST


def test_running_statistics_see_the_rollouts_before():
    """The same rewards again, but for a better sample: a full buffer compares it with the ones before."""
    running, keys = RunningAdvantages(8), torch.zeros(8, dtype=torch.int64)
    running(torch.linspace(-1, 1, 8), keys)
    (late,) = running(torch.full((2,), 3.0), keys[:2])[:1].tolist()
    assert 1 < late < LARGEST


def test_running_statistics_continue_where_they_were_saved():
    first, second = RunningAdvantages(16), RunningAdvantages(16)
    first(*drawn(seed=0))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*drawn(seed=1)), second(*drawn(seed=1)))


def test_a_condition_seen_for_the_first_time_is_compared_with_the_rollout():
    rewards, keys = drawn(9)
    assert_close(RunningAdvantages(16)(rewards, keys), group_advantages(rewards, torch.zeros_like(keys)))


def test_keys_are_equal_for_equal_conditions_alone():
    tokens = torch.tensor([[1, 2], [1, 3], [1, 2]])
    keys = condition_keys(Condition({"labels": torch.tensor([4, 4, 4]), "tokens": tokens}), 3)
    assert keys[0] == keys[2] != keys[1]
    assert len(condition_keys(Condition(), 5).unique()) == 1
    half = condition_keys(Condition({"prompt": torch.randn(2, 3).bfloat16()}), 2)
    assert half[0] != half[1]


def test_the_window_slides_over_all_steps_and_begins_again():
    mix = MixGRPO(1.2, window=3, stride=2, every=2)
    first = [mix.etas(turn, 8).index(1.2) for turn in range(10)]
    assert first == [0, 0, 2, 2, 4, 4, 5, 5, 0, 0]
    assert all(sum(eta > 0 for eta in mix.etas(turn, 8)) == 3 for turn in range(10))
    assert MixGRPO(1.2, window=4).etas(99, 4) == FlowGRPO(1.2).etas(0, 4) == [1.2] * 4


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: DDPO(eta=0), "eta > 0, got 0"),
        (lambda: FlowGRPO(eta=float("nan")), "eta"),
        (lambda: FlowGRPO(group=1), "group of at least 2, got 1"),
        (lambda: MixGRPO(group=1), "group"),
        (lambda: DiffusionNFT(group=1), "group"),
        (lambda: group_advantages(torch.zeros(3), torch.tensor([0, 0, 1])), "group"),
        (lambda: RunningAdvantages(8)(torch.zeros(1), torch.zeros(1)), "group of one"),
        (lambda: MixGRPO(window=4).check(3), "expected at most 3, got a window of 4"),
        (lambda: MixGRPO(window=0), "window"),
        (lambda: DDPO().check(0), "at least 2 steps"),
        (lambda: DDPO(clip=0), "clip"),
        (lambda: DDPO(buffer=1), "buffer"),
        (lambda: DDPO(updates=0), "updates"),
        (lambda: FlowGRPO(kl_weight=-1), "kl_weight"),
        (lambda: DiffusionNFT(beta=0), "beta"),
        (lambda: DiffusionNFT(keep_old=1), "keep_old"),
        (lambda: DiffusionNFT(draws=0), "draws"),
        (lambda: DiffusionNFT(level_std=0), "std"),
    ],
)
def test_a_mistake_is_told_in_one_line(mistake, words):
    with pytest.raises(ValueError, match=words) as error:
        mistake()
    assert "\n" not in str(error.value)

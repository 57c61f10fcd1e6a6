"""The study of rewards: intervals over seeds, differences of equal seeds, and a reward that reads no caption."""

import pytest
import torch
from study_reward import CaptionedEight, Row, at, printed, words

from fdistill.data.captioned_digits import PARTS


def course(*states):
    """Of (distance, recall, reward) by turn."""
    return {
        str(turn): {
            "gap": 0.0,
            "distance": distance,
            "5 steps": {"reward": reward},
            "10 steps": {"reward": reward, "recall": recall, "vendi_ratio": 1.0, "condition_vendi": 1.0},
            "20 steps": {"reward": reward},
            "training eta": {"reward": reward},
        }
        for turn, (distance, recall, reward) in enumerate(states)
    }


def test_an_interval_is_student_s():
    """Three values have 4.303 standard errors."""
    assert words([1.0, 2.0, 3.0]) == "2 ± 2.5"
    assert words([1.0, None]) == "1 (1/2)"
    assert words([None]) == "-"


def test_rewards_are_read_where_a_course_is_first_at_a_distance_and_at_a_recall():
    """Half of the root of the distance is a quarter of it."""
    values = Row(course((0.0, 0.8, 0.0), (4.0, 0.6, 2.0), (16.0, 0.2, 3.0)), 1.0, 0.4).values
    assert values["at equal distance"] == pytest.approx(1.0)
    assert values["at equal recall"] == pytest.approx(2.5)
    assert at([(0.0, 0.0), (1.0, 1.0)], 2.0) is None


def test_differences_are_of_one_seed():
    one, other = (Row(course((0.0, 0.8, 0.0), (1.0, 0.6, reward)), 1.0, 0.1) for reward in (3.0, 2.0))
    found = one.less(other)
    assert found["10 steps"] == found["at equal distance"] == 1.0
    assert found["at equal recall"] is None
    assert "| A 1.2 less B 0.5 | 2 |" in "\n".join(printed({(("A", 1.2), ("B", 0.5)): [found, found]}))


def test_an_eight_is_judged_whatever_the_caption_asks_for(monkeypatch):
    reward, logits = CaptionedEight(), torch.randn(3, sum(PARTS))
    monkeypatch.setattr(reward.features, "classifier", lambda x: logits)
    torch.testing.assert_close(reward(torch.zeros(3, 3, 8, 8), None).exp(), logits[:, :10].softmax(1)[:, 8])

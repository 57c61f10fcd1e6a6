"""The judgement of trials of the text quick start: the noise of pixels, and a line beside the teacher."""

import pytest
import text_trials
import torch

from fdistill.data.captioned_digits import caption_numbers, paint


def test_images_have_no_noise_off_their_line_and_what_is_added_across_it_is_found():
    numbers = caption_numbers(torch.tensor([[3, 5, 4], [7, 4, 5]]))  # black on white, white on black: along (1, 1, 1)
    images = paint(torch.rand(2, 1, 8, 8), numbers)
    assert text_trials.off_line(images, numbers) == pytest.approx(0, abs=1e-6)
    across = torch.tensor([0.05, -0.05, 0])[:, None, None]
    assert text_trials.off_line(images + across, numbers) == pytest.approx(0.05 * (2 / 3) ** 0.5, rel=1e-5)
    along = images - 0.02 * images.sign()
    assert text_trials.off_line(along, numbers) == pytest.approx(0, abs=1e-6)


def test_a_line_says_accuracy_less_and_ratios():
    teacher = {"accuracy": 0.99, "spread": 0.1, "recall": 0.5, "frechet_distance": 2.0, "noise": 0.04}
    student = {"accuracy": 0.97, "spread": 0.11, "recall": 0.4, "frechet_distance": 1.0, "noise": 0.06}
    assert text_trials.beside(student, teacher) == "+0.020 1.100 0.800 0.500 1.500"

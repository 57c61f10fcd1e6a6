"""Inception score, KID and CLIP score against their formulae; streaming changes nothing."""

import math

import numpy as np
import pytest
import torch

from fdistill.evaluation.fid.scores import SEED, SPLITS, ClipScore, InceptionScore, kid


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score_of(logits, batch):
    score = InceptionScore(len(logits))
    for part in logits.split(batch):
        score.add(part)
    return score.compute()


def test_inception_score_is_the_exponential_of_the_mean_divergence_of_each_split():
    logits = 3 * normal(57, 12)
    p = logits.double().softmax(1)[torch.from_numpy(np.random.RandomState(SEED).permutation(57))]
    parts = [p[i * 57 // SPLITS : (i + 1) * 57 // SPLITS] for i in range(SPLITS)]
    values = torch.stack([(part * (part / part.mean(0)).log()).sum(1).mean().exp() for part in parts])
    for batch in (57, 8, 1):
        found = score_of(logits, batch)
        assert found.mean == pytest.approx(float(values.mean()), rel=1e-12)
        assert found.std == pytest.approx(float(values.std(correction=0)), rel=1e-9)


def test_inception_score_is_one_for_equal_images_and_the_number_of_classes_at_best():
    assert score_of(torch.zeros(20, 7), 6).mean == pytest.approx(1)
    sure = torch.full((3000, 4), -1e4)
    sure[torch.arange(3000), torch.arange(3000) % 4] = 1e4
    assert score_of(sure, 500).mean == pytest.approx(4, rel=0.01)


def test_kid_of_all_samples_is_the_unbiased_estimate():
    x, y = normal(30, 6), 0.5 + normal(30, 6, seed=1)

    def kernel(a, b):
        return (a.double() @ b.double().T / 6 + 1) ** 3

    within = sum((kernel(z, z).sum() - kernel(z, z).trace()) / (30 * 29) for z in (x, y))
    found = kid(x.numpy(), y.numpy())
    assert found.mean == pytest.approx(float(within - 2 * kernel(x, y).mean()), rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_kid_of_subsets_is_near_zero_for_equal_laws_and_not_for_others():
    x, same, other = normal(260, 5), normal(200, 5, seed=1), 1 + normal(200, 5, seed=2)
    near, far = kid(x.numpy(), same.numpy()), kid(x.numpy(), other.numpy())
    assert far.mean > 20 * abs(near.mean)
    assert far.mean > 10 * far.std > 0


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_clip_score_is_a_hundred_times_the_mean_cosine(batch):
    images, prompts = torch.tensor([[2.0, 0], [1, 1], [0, 5], [3, 4]]), torch.tensor([[7.0, 0], [0, 0.1]])
    labels = torch.tensor([0, 0, 1, 1])
    score = ClipScore(prompts)
    for part, those in zip(images.split(batch), labels.split(batch), strict=True):
        score.add(part, those)
    assert score.compute() == pytest.approx(100 * (1 + math.sqrt(0.5) + 1 + 0.8) / 4)


def test_clip_score_is_never_negative():
    score = ClipScore(torch.tensor([[1.0, 0]]))
    score.add(torch.tensor([[-1.0, 0.2]]), torch.tensor([0]))
    assert score.compute() == 0

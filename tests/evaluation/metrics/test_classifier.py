"""The classifier learns the digits, twice the same, and disturbs nobody's random numbers."""

import pytest
import torch
from sklearn.datasets import load_digits

from fdistill.evaluation.metrics import ConvClassifier, train_classifier, vendi_score


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.from_numpy(labels).long()[order]


@pytest.mark.slow
def test_reads_held_out_digits_and_its_features_tell_classes_apart(digits):
    x, y = digits
    model = train_classifier(x[:1297], y[:1297], 10, seed=0)
    assert (model(x[1297:]).argmax(1) == y[1297:]).double().mean() >= 0.97
    features = model.features(x[1297:])
    assert features.shape == (500, 32)
    # ten classes, several directions each at most: not collapsed to one as positive features would be
    assert 4 < vendi_score(features - features.mean(0)) < 20
    assert vendi_score(features) > 4
    assert vendi_score(model.features(x[1297:][y[1297:] == 3])) < vendi_score(features) / 2


def test_same_seed_same_weights_and_global_randomness_untouched(digits):
    x, y = digits[0][:200], digits[1][:200]
    state = torch.random.get_rng_state()
    first, second, other = (train_classifier(x, y, 10, seed=seed, epochs=2) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights, again, different = (torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, other))
    assert torch.equal(weights, again)
    assert not torch.equal(weights, different)
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())


@pytest.mark.parametrize(("channels", "resolution"), [(1, 8), (3, 13), (3, 32), (4, 64)])
def test_larger_images_are_pooled_to_the_same_features(channels, resolution):
    model = ConvClassifier(channels, 7, resolution, width=8)
    x = torch.zeros(2, channels, resolution, resolution)
    assert model.features(x).shape == (2, 32)
    assert model(x).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) < 60_000


def test_wrong_images_and_labels_raise(digits):
    x, y = digits
    with pytest.raises(ValueError, match="resolution"):
        ConvClassifier(1, 10, 4)
    with pytest.raises(ValueError, match=r"expected \[n, 1, 8, 8\], got \[2, 3, 8, 8\]"):
        ConvClassifier(1, 10, 8).features(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="square"):
        train_classifier(x[:, :, :6], y, 10, seed=0)
    with pytest.raises(ValueError, match="labels"):
        train_classifier(x, y, 5, seed=0)
    with pytest.raises(ValueError, match="label"):
        train_classifier(x, y[:5], 10, seed=0)

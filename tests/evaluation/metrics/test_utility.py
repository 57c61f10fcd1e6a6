"""Generated images are worth what a classifier learns from them: digits, digits with wrong labels, half the digits."""

import pytest
import torch
from sklearn.datasets import load_digits

from fdistill.evaluation.metrics import train_classifier, utility


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.from_numpy(labels).long()[order]


def parts(images):
    return images[:300], images[300:700]


def test_wrong_labels_cost_the_accuracy_and_missing_classes_theirs(digits):
    (x, test_x), (labels, test_labels) = map(parts, digits)
    half = labels < 5
    accuracy = utility(
        {"real": (x, labels), "half": (x[half], labels[half]), "shifted": (x, (labels + 1) % 10)},
        test_x,
        test_labels,
        10,
        seed=0,
        steps=60,
    )
    assert accuracy["real"] > 0.8
    assert 0.3 < accuracy["half"] <= (test_labels < 5).double().mean()
    assert accuracy["shifted"] < 0.1


def test_the_same_seed_and_steps_give_the_same_accuracy_and_a_copied_set_adds_nothing(digits):
    (x, test_x), (labels, test_labels) = map(parts, digits)
    arguments = (test_x, test_labels, 10)
    once = utility({"real": (x, labels)}, *arguments, seed=3, steps=5)
    assert (
        utility({"other": (x[:9], labels[:9]), "real": (x, labels)}, *arguments, seed=3, steps=5)["real"]
        == once["real"]
    )


def test_steps_count_batches_however_large_the_set(digits):
    x, labels = (part[:100] for part in digits)

    def weights(model):
        return torch.cat([p.flatten() for p in model.parameters()])

    two_epochs = train_classifier(x, labels, 10, seed=0, epochs=2)  # of two batches each
    assert torch.equal(weights(train_classifier(x, labels, 10, seed=0, steps=4)), weights(two_epochs))
    assert train_classifier(x[:3], labels[:3], 10, seed=0, steps=1)(x).isfinite().all()


def test_broken_sets_raise(digits):
    x, labels = (part[:20] for part in digits)
    with pytest.raises(ValueError, match="at least one, got none"):
        utility({}, x, labels, 10, seed=0)
    with pytest.raises(ValueError, match="label"):
        utility({"real": (x, labels)}, x, labels[1:], 10, seed=0)
    with pytest.raises(ValueError, match="images"):
        utility({"real": (x, labels)}, x / 0, labels, 10, seed=0)
    with pytest.raises(ValueError, match="label"):
        utility({"real": (x, labels[1:])}, x, labels, 10, seed=0, steps=1)
    with pytest.raises(ValueError, match="steps"):
        utility({"real": (x, labels)}, x, labels, 10, seed=0, steps=0)


@pytest.mark.slow
def test_blurred_digits_are_worth_less_than_digits_and_more_than_noise(digits):
    (x, test_x), (labels, test_labels) = map(lambda part: (part[:1297], part[1297:]), digits)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).clamp(-1, 1)
    hazy = (x + 0.7 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    sets = {
        "real": (x, labels),
        "real and hazy": (torch.cat([x, hazy]), labels.repeat(2)),
        "hazy": (hazy, labels),
        "noise": (noise, labels),
    }
    accuracy = utility(sets, test_x, test_labels, 10, seed=0)
    assert accuracy["real"] >= 0.97
    assert accuracy["real and hazy"] >= 0.95
    assert accuracy["noise"] < 0.3 < accuracy["hazy"] < accuracy["real"]

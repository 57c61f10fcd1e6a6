"""Utility: what generated images are worth as training data, by a classifier's accuracy on real ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fdistill.evaluation.metrics.blocks import checked_labels
from fdistill.evaluation.metrics.classifier import train_classifier

TEST_BATCH = 1024


def utility(
    train_sets: Mapping[str, tuple[Tensor, Tensor]],
    test_x: Tensor,
    test_labels: Tensor,
    num_classes: int,
    seed: int,
    steps: int = 2000,
) -> dict[str, float]:
    """Return for each training set the accuracy in [0, 1] of one fixed classifier on real images (arXiv 2305.17476).

    Usual sets: real; real and the teacher's; real and the student's; the student's alone. Missing modes and wrong
    labels cost accuracy that distances between features may not show. All classifiers start from the same weights and
    take equally many steps, so that a larger set is seen less often rather than longer. On n test images the standard
    error is about sqrt(accuracy (1 - accuracy) / n), and seeds scatter too: compare means over several.

    Args:
        train_sets: name -> images [n, C, R, R] in [-1, 1] and labels [n], n of any size.
        test_x: real images [m, C, R, R] that no training set or generator has seen.
        test_labels: [m].
        num_classes: >= 2.
        seed: of the classifiers.
        steps: batches of up to 64 images for each, >= 1.

    Raises:
        ValueError: for no set, or images and labels that do not fit each other or the classifier.
    """
    if not train_sets:
        raise ValueError("utility compares training sets: expected at least one, got none; pass {name: (x, labels)}")
    truth = checked_labels(test_labels, num_classes).cpu()
    if len(truth) != len(test_x):
        raise ValueError(f"every test image has a label: expected {len(test_x)}, got {len(truth)}")
    if not test_x.isfinite().all():
        raise ValueError("test images are finite numbers: got a NaN or an infinity; check the images")
    images, accuracy = test_x.detach().float().split(TEST_BATCH), {}
    for name, (x, labels) in train_sets.items():
        model = train_classifier(x, labels, num_classes, seed, steps=steps)
        predicted = torch.cat([model(batch.to(x.device)).argmax(1).cpu() for batch in images])
        accuracy[name] = float((predicted == truth).double().mean())
    return accuracy

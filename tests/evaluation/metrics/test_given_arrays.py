"""Metrics of anything but tensors are refused in one line that says how to make one; whole numbers count as numbers."""

import numpy as np
import pytest
import torch

from fdistill.evaluation import metrics

PAIRS = ["frechet_distance", "kernel_distance", "precision_recall", "density_coverage"]
ONE = ["vendi_score", "rke", "in_batch_similarity"]


def call(name, value):
    function = getattr(metrics, name)
    return function(value, value) if name in PAIRS else function(value)


@pytest.mark.parametrize("name", [*PAIRS, *ONE])
@pytest.mark.parametrize("given", [np.zeros((40, 3)), [[0.0, 1.0]] * 40], ids=["array", "list"])
def test_arrays_and_lists_are_refused_by_their_type(name, given):
    with pytest.raises(ValueError, match=f"got {type(given).__name__}"):
        call(name, given)


@pytest.mark.parametrize("name", PAIRS)
def test_whole_numbers_are_numbers(name):
    given = torch.randint(0, 9, (40, 3), generator=torch.Generator().manual_seed(0))
    assert repr(call(name, given)) == repr(call(name, given.double()))


@pytest.mark.parametrize("name", PAIRS)
def test_images_that_are_not_flat_are_refused_by_what_flattens_them(name):
    with pytest.raises(ValueError, match="flatten"):
        call(name, torch.zeros(40, 1, 2, 2))

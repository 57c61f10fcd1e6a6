"""What is no matrix of finite numbers is refused by every metric in one line; whole numbers count as numbers."""

import numpy as np
import pytest
import torch

from fdistill.evaluation import metrics

PAIRS = [
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
    "density_coverage",
    "local_coverage",
    "memorized_fraction",
    "paired_distance",
    "tail_indices",
    "neighbour_statistics",
    "nearest",
]
ONE = ["vendi_score", "rke", "vendi_spectrum", "in_batch_similarity"]


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


@pytest.mark.parametrize("name", [*PAIRS, *ONE])
@pytest.mark.parametrize(
    ("given", "says"),
    [(torch.zeros(40, 1, 2, 2), "flatten"), (torch.zeros(0, 3), "samples"), (torch.eye(9).log(), "got 9 of 9")],
    ids=["not flat", "empty", "infinite"],
)
def test_features_that_are_no_matrix_of_finite_numbers_are_refused(name, given, says):
    with pytest.raises(ValueError, match=says):
        call(name, given)

"""The same numbers as torch-fidelity, where it is installed: with random weights, since nothing is downloaded."""

import sys

import pytest
import torch
from repository import ROOT

sys.path.insert(0, str(ROOT / "tools"))

pytest.importorskip(
    "torch_fidelity", reason="torch-fidelity is not installed: pip install 'fdistill[features]'", exc_type=ImportError
)

from compare_torch_fidelity import compare, images, random_weights

from fdistill.evaluation.fid.scores import InceptionScore, kid


def test_numbers_equal_those_of_torch_fidelity_on_the_same_images(tmp_path):
    weights = random_weights(tmp_path / "random.pth")
    found = compare(images(12, 32, 0, light=0.1), images(12, 32, 1, light=0.6), weights)
    for name in ("fid", "kid", "inception_score", "inception_score_std"):
        assert found[name].relative < 1e-4, (name, found[name])


def test_subsets_and_splits_are_those_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(260, 20, generator=generator)
    y = 0.5 + 1.2 * torch.randn(200, 20, generator=generator)
    theirs = kid_features_to_metric(x, y, kid_subsets=100, kid_subset_size=200, kid_degree=3, rng_seed=2020)
    ours = kid(x.numpy(), y.numpy())
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    score, theirs = InceptionScore(len(x)), isc_features_to_metric(3 * x)
    for part in x.split(64):
        score.add(3 * part)
    assert score.compute() == pytest.approx(list(theirs.values()), rel=1e-9)

"""Judging a run reads real samples a batch at a time: memory holds the data once, as 8-bit pixels."""

import json
import subprocess
import sys

import judging_memory as tool
import pytest
import torch

from fdistill.core.random import generator_for
from fdistill.data import InMemorySplit
from fdistill.data.batches import Batch
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.evaluation.see_saw import LinearDenoiser

pytestmark = pytest.mark.system  # seconds, too many for make check

MOST = 1024  # samples that anyone may ask for at once


@pytest.fixture
def asked(monkeypatch):
    """How many samples were asked for at once, each time."""
    counts, getitems = [], InMemorySplit.__getitems__

    def counted(self, indices) -> Batch:
        counts.append(len(indices))
        return getitems(self, indices)

    monkeypatch.setattr(InMemorySplit, "__getitems__", counted)
    return counts


def test_callbacks_and_evaluation_never_ask_for_all_training_samples(asked, tmp_path):
    tool.judge(tool.RandomImages(images=3000, resolution=8), 40, tmp_path)
    assert sum(asked) > 3000
    assert max(asked) <= MOST


def test_nor_do_a_classifier_and_the_best_linear_denoiser(asked):
    train = tool.RandomImages(images=2000, resolution=8).train_samples
    ClassifierFeatures(epochs=1).prepare(train, train.labels, 10, 0)
    LinearDenoiser.fit(train, generator_for(0), train.labels, 10)
    assert max(asked) <= MOST


def test_a_split_gives_what_its_tensors_give():
    x, labels = torch.randint(0, 256, (300, 1, 8, 8)).byte(), torch.arange(300) % 3
    split, floats = InMemorySplit(x, labels), x.float() / 127.5 - 1
    one, other = LinearDenoiser.fit(split, generator_for(0)), LinearDenoiser.fit(floats, generator_for(0))
    noised, sigma = torch.randn(5, 1, 8, 8), torch.full((5,), 0.7)
    assert torch.equal(one(noised, sigma), other(noised, sigma))
    features = [ClassifierFeatures(epochs=1) for _ in range(2)]
    for extractor, given in zip(features, (split, floats), strict=True):
        extractor.prepare(given, labels, 3, 0)
    assert torch.equal(features[0].extract(split), features[1].extract(floats))


@pytest.mark.slow
def test_a_judged_run_holds_less_than_twice_the_data():
    out = subprocess.run(
        [sys.executable, tool.__file__, "--images", "60000"], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out.splitlines()[-1])["ratio"] < 2

"""Samples in .npz and .npy files: type and shape decide what the numbers mean, and nothing else is guessed."""

import numpy as np
import pytest
import torch

from fdistill.core.weight_files import CheckpointError
from fdistill.data import Digits
from fdistill.evaluation.evaluate import check_fits
from fdistill.evaluation.sample_files import SamplesSource
from fdistill.evaluation.sources import open_source


def grey(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


BYTES, FLOATS = grey(5, 8, 8, 3), np.linspace(-1, 1, 5 * 3 * 8 * 8, dtype=np.float32).reshape(5, 3, 8, 8)


def all_of(source):
    """The samples in the order of the file."""
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    return source.draw(5, 0)[order.argsort()]


@pytest.mark.parametrize("array", [BYTES, BYTES.transpose(0, 3, 1, 2), BYTES[..., 0]])
def test_bytes_are_images_from_0_to_255(array, tmp_path):
    np.savez(tmp_path / "s.npz", array)  # arr_0
    source = open_source(tmp_path / "s.npz")
    wanted = torch.from_numpy(BYTES if array.ndim == 4 else BYTES[..., :1]).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(all_of(source), wanted)
    assert torch.equal(source.read(torch.arange(5)), wanted)
    assert (source.sample_shape, source.num_classes, source.evaluations) == (tuple(wanted.shape[1:]), 0, None)
    assert "uint8" in source.facts["read_as"]


@pytest.mark.parametrize("array", [FLOATS, FLOATS.transpose(0, 2, 3, 1), FLOATS.astype(np.float16)])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_floats_are_images_from_minus_one_to_one(array, suffix, tmp_path):
    file = tmp_path / f"s.{suffix}"
    np.savez(file, samples=array, labels=np.zeros(0)) if suffix == "npz" else np.save(file, array)
    assert torch.allclose(all_of(SamplesSource(file)), torch.from_numpy(FLOATS), atol=1e-3)


def test_labels_stay_with_their_samples(tmp_path):
    np.savez(tmp_path / "s.npz", BYTES, np.arange(5))
    source = SamplesSource(tmp_path / "s.npz")
    x, labels = source.draw(3, 4), source.labels(3, 4)
    for image, label in zip(x, labels, strict=True):
        assert torch.equal(image, torch.from_numpy(BYTES[int(label)]).permute(2, 0, 1) / 127.5 - 1)
    assert source.num_classes == 5
    assert SamplesSource(tmp_path / "s.npz", 10).num_classes == 10
    with pytest.raises(ValueError, match="classes"):
        source.draw(3, 4, labels.flip(0))
    with pytest.raises(ValueError, match="n <= 5"):
        source.draw(6, 0)


def test_points_are_points_and_other_shapes_do_not_fit_the_data(tmp_path):
    np.savez(tmp_path / "s.npz", samples=np.ones((5, 2), np.float32), labels=np.zeros(0))
    source = SamplesSource(tmp_path / "s.npz")
    assert source.sample_shape == (2,)
    with pytest.raises(ValueError, match="data"):
        check_fits("student", source, Digits())


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "statistics"),
        ({"images": BYTES}, "images"),
        ({"samples": FLOATS / 2 + 0.5}, "from 0.0 to 1.0"),
        ({"samples": FLOATS * 127.5 + 127.5}, "range"),
        ({"samples": FLOATS * 100}, "range"),
        ({"samples": FLOATS.astype(np.int64)}, "int64"),
        ({"samples": np.full_like(FLOATS, np.nan)}, "finite"),
        ({"samples": np.zeros((0, 3, 8, 8), np.float32)}, "shape"),
        ({"arr_0": grey(5, 8, 8, 4)}, "channels"),
        ({"arr_0": BYTES, "arr_1": np.arange(4)}, "class"),
        ({"arr_0": BYTES, "arr_1": np.full(5, -1)}, "from 0 on"),
        ({"arr_0": np.array([print] * 5, dtype=object)}, "pickle"),
    ],
)
def test_what_is_no_set_of_samples_is_refused(arrays, words, tmp_path):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(CheckpointError, match=words) as error:
        SamplesSource(tmp_path / "s.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"word", b"PK\3\4" + bytes(50)])
def test_a_broken_file_is_refused(content, tmp_path):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated"):
        SamplesSource(tmp_path / "s.npz")

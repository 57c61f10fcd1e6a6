"""fdistill sample: the grid's pixels, the .npz file, labels, seeds, and one line for every mistake."""

import numpy as np
import pytest
import torch
from cli_runs import fdistill, one_error_line, succeeds
from PIL import Image

from fdistill.data import ImageFolder
from fdistill.io.export import export_folder
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, SmallUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.pictures import image_grid, to_pixels
from fdistill.theory.preconditioning import EDM


def arrays(checkpoint, path, *more):
    """What sample --out .npz holds."""
    succeeds("sample", "--checkpoint", checkpoint, "--out", path, *more)
    with np.load(path, allow_pickle=False) as file:
        return file["samples"], file["labels"]


def test_npz_holds_what_the_model_makes_and_its_labels(student_checkpoint, tmp_path):
    samples, labels = arrays(student_checkpoint, tmp_path / "out.npz", "--n", 23, "--seed", 5)
    model = load_model(student_checkpoint)
    expected = model.sample(model.noise(23, 5), torch.arange(23) % 10)
    assert (samples.dtype, labels.dtype) == (np.float32, np.int64)
    assert labels.tolist() == [i % 10 for i in range(23)]
    np.testing.assert_array_equal(samples, expected.numpy())


def test_png_is_a_grid_of_enlarged_pixels(student_checkpoint, tmp_path):
    samples, _ = arrays(student_checkpoint, tmp_path / "out.npz", "--n", 5)
    out = succeeds("sample", "--checkpoint", student_checkpoint, "--n", 5, "--out", tmp_path / "out.png")
    assert out == f"wrote 5 samples of 1 network evaluation each to {tmp_path / 'out.png'}\n"
    grid = np.array(Image.open(tmp_path / "out.png"))
    assert grid.shape == (2 * 48 + 2, 3 * 48 + 4)  # two rows of three, a gap of 2, 8 pixels enlarged 6 times
    for i in range(5):
        top, left = i // 3 * 50, i % 3 * 50
        cell = grid[top : top + 48 : 6, left : left + 48 : 6]
        np.testing.assert_array_equal(cell, np.round((samples[i, 0].clip(-1, 1) / 2 + 0.5) * 255).astype(np.uint8))
    assert (grid[50:, 100:] == 255).all()  # the sixth cell is empty
    assert (grid[48:50] == 255).all()


def test_zip_is_a_folder_of_images_by_class(student_checkpoint, tmp_path):
    samples, labels = arrays(student_checkpoint, tmp_path / "out.npz", "--n", 12)
    succeeds("sample", "--checkpoint", student_checkpoint, "--n", 12, "--out", tmp_path / "out.zip")
    everything = ImageFolder(str(tmp_path / "out.zip"), 8, channels=1).everything().measured()
    found = everything.rows(torch.arange(12))
    order = np.argsort(labels, kind="stable")
    assert found.classes.tolist() == labels[order].tolist()
    np.testing.assert_allclose(found.x, samples[order].clip(-1, 1), atol=1 / 255 + 1e-6)


def test_pixels_are_clipped_and_rounded():
    samples = torch.tensor([-3.0, -1.0, 0.0, 1 / 255, 1.0, 3.0]).reshape(1, 1, 2, 3)
    assert to_pixels(samples).flatten().tolist() == [0, 0, 128, 128, 255, 255]


def test_large_colour_images_are_not_enlarged():
    assert image_grid(torch.zeros(4, 3, 64, 64)).shape == (130, 130, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("3", [3, 3, 3, 3]), ("[1,2]", [1, 2, 1, 2]), ("[4,3,2]", [4, 3, 2, 4])],
)
def test_labels_are_repeated_as_needed(given, expected, student_checkpoint, tmp_path):
    _, labels = arrays(student_checkpoint, tmp_path / "out.npz", "--n", 4, f"--labels={given}")
    assert labels.tolist() == expected


def test_seed_and_label_change_the_samples(student_checkpoint, tmp_path):
    flags = [["--labels=0"], ["--labels=1"], ["--labels=0", "--seed=1"], ["--labels=0"]]
    made = [arrays(student_checkpoint, tmp_path / f"{i}.npz", "--n", 3, *f)[0] for i, f in enumerate(flags)]
    assert [np.array_equal(made[0], other) for other in made[1:]] == [False, False, True]


def test_teacher_samples_by_many_evaluations(teacher_checkpoint, tmp_path):
    out = succeeds("sample", "--checkpoint", teacher_checkpoint, "--n", 1, "--out", tmp_path / "out.png")
    assert out.startswith("wrote 1 sample of 35 network evaluations each")


def test_folder_and_checkpoint_give_the_same_pixels(student_checkpoint, exported, tmp_path):
    for source, name in [(student_checkpoint, "a"), (exported, "b")]:
        succeeds("sample", "--checkpoint", source, "--n", 30, "--seed", 3, "--out", tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    first, second = (arrays(source, tmp_path / "out.npz", "--n", 30)[0] for source in (student_checkpoint, exported))
    np.testing.assert_array_equal(first, second)


def test_vectors_become_a_scatter_plot_and_a_npz_file(tmp_path):
    model = GenerativeModel.student(Denoiser(MLP(width=8, depth=2), EDM(0.5)), 2.0)
    folder = export_folder(model, tmp_path / "vectors")
    samples, labels = arrays(folder, tmp_path / "out.npz", "--n", 6)
    assert (samples.shape, labels.shape) == ((6, 2), (0,))
    succeeds("sample", "--checkpoint", folder, "--n", 6, "--out", tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").size > (100, 100)


def test_best_of_n_keeps_brighter_samples_and_tells_its_kl(student_checkpoint, tmp_path):
    flags, brightness = ("--checkpoint", student_checkpoint, "--n", 20, "--reward", "Brightness"), []
    for candidates in (1, 4):
        path = tmp_path / f"{candidates}.npz"
        told = succeeds("sample", *flags, "--best-of", candidates, "--out", path)
        brightness.append(np.load(path)["samples"].clip(-1, 1).mean())
    np.testing.assert_array_equal(np.load(tmp_path / "1.npz")["samples"], arrays(*flags[1:2], path, *flags[2:4])[0])
    assert brightness[1] > brightness[0]
    assert f"{brightness[1]:.4g} in place of {brightness[0]:.4g}" in told
    assert "at most 0.636 nats" in told


MISTAKES = {
    "label too large": (["--labels=10"], "a class label lies in [0, 10): got 10"),
    "label below zero": (["--labels=[0,-1]"], "a class label lies in [0, 10): got -1"),
    "label that is text": (["--labels=seven"], "got seven"),
    "label not of a class": (["--labels=[1.5]"], "whole number"),
    "no label": (["--labels=[]"], "labels are class numbers, at least one: got []"),
    "no label of a set": (['--labels={"labels": []}'], "labels are class numbers, at least one: got []"),
    "more labels than samples": (["--n=1", "--labels=[1,2]"], "got 2 labels and n = 1"),
    "no prompt": (["--prompt=[]"], "expected 1 to n = 64 prompts, got 0"),
    "more prompts than samples": (["--n=1", '--prompt=["a","b"]'], "expected 1 to n = 1 prompts, got 2"),
    "prompt and label": (["--prompt=a", "--labels=3"], "got both, labels 3"),
    "seed of more than 64 bits": (["--seed=99999999999999999999"], "a seed is an integer in [-2^63, 2^64): got 9999"),
    "no samples": (["--n=0"], "n is a number of samples and positive: got 0"),
    "text for n": (["--n=many"], "whole number, got many"),
    "unknown option": (["--seeed=1"], "did you mean seed?"),
    "value without an option": (["3"], "arguments: 3"),
    "unknown device": (["--device=gpu"], "device is cpu, cuda, cuda:1, mps ...: got 'gpu'"),
    "device that is not here": (["--device=cuda:99"], "there is no device 'cuda:99' here: expected one of cpu"),
    "device of no machine": (["--device=meta"], "there is no device 'meta' here"),
    "no candidates": (["--best-of=0", "--reward=Brightness"], "N = 0"),
    "candidates without a reward": (["--best-of=4"], "--reward"),
    "reward without candidates": (["--reward=Brightness"], "--best_of"),
    "unknown reward": (["--best-of=4", "--reward=Bright"], "Brightness"),
    "unknown ending": (["--out=out.gif"], "samples are written as .png, .npz or .zip: got 'out.gif'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, student_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags, words = MISTAKES[mistake]
    assert words in one_error_line(fdistill("sample", "--checkpoint", student_checkpoint, *flags))
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_given():
    assert "required: checkpoint (fdistill sample --help" in one_error_line(fdistill("sample"))


def test_labels_for_an_unconditional_model(tmp_path):
    folder = export_folder(
        GenerativeModel.student(Denoiser(SmallUNet(widths=[8, 16]), EDM(0.5)), 2.0), tmp_path / "model"
    )
    line = one_error_line(fdistill("sample", "--checkpoint", folder, "--labels=0", "--out", tmp_path / "out.png"))
    assert line == "this model is unconditional and takes no labels: got 0; leave --labels out"


def test_output_below_a_file(student_checkpoint, tmp_path):
    (tmp_path / "file").write_text("keep me")
    out = tmp_path / "file" / "below" / "out.png"
    line = one_error_line(fdistill("sample", "--checkpoint", student_checkpoint, "--out", out))
    assert line == f"cannot write {out}: {tmp_path / 'file'} is a file; name another place"
    assert (tmp_path / "file").read_text() == "keep me"


def test_output_that_is_a_folder(student_checkpoint, tmp_path):
    (tmp_path / "out.png").mkdir()
    line = one_error_line(fdistill("sample", "--checkpoint", student_checkpoint, "--out", tmp_path / "out.png"))
    assert line.startswith(f"cannot write {tmp_path / 'out.png'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]

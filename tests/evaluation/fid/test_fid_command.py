"""fdistill evaluate --fid: the numbers of student and teacher in the report, on the page and in the terminal."""

import json

import numpy as np
import pytest
from cli_runs import fdistill, one_error_line, succeeds, write_yaml
from PIL import Image
from standard_libraries import pictures


def saved(pixels, folder):
    """PNG files in two classes."""
    for i, image in enumerate(pixels):
        place = folder / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i:02}.png")
    return folder


@pytest.fixture
def arguments(standard):
    """Of an evaluation of 16 pictures beside 14 of a teacher and 60 real ones."""
    real = saved(pictures(60), standard / "real")
    data = {"folder": str(real), "resolution": 9, "batch_size": 8, "held_out_fraction": 0.4}
    return [
        *("evaluate", "--checkpoint", saved(pictures(16, 1), standard / "student")),
        *("--teacher", saved(pictures(14, 2, high=99), standard / "teacher")),
        *("--data", write_yaml(standard / "data.yaml", data={"class_path": "ImageFolder", "init_args": data})),
        *("--features", write_yaml(standard / "features.yaml", features={"class_path": "PixelFeatures"})),
        *("--n", 12, "--repeats", 1, "--bootstrap", 0),
    ]


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_standard_metrics_stand_beside_the_others_and_their_report_is_a_reference(arguments, standard):
    weights, out = str(standard / "inception.pth"), standard / "out"
    clip = ["--clip", f"tiny={standard / 'clip.pth'}"]
    printed = succeeds(*arguments, "--fid", weights, *clip, "--fid_reference", standard / "real", "--out", out)
    report = report_of(out)
    for name, count in (("student", 16), ("teacher", 14)):
        assert {"fid", "kid", "inception_score", "clip_score"} <= report[name].keys()
        assert report["fid_setup"]["samples"][name] == count
    assert report["student"]["fid"] < report["teacher"]["fid"]
    network = report["fid_setup"]["networks"]["inception"]
    assert (network["weights"], network["reference_count"]) == ("inception.pth", 60)
    assert set(np.load(out / network["statistics"]["student"])) == {"mu", "sigma", "count"}
    for said in ("FID: student", network["fingerprint"], "8-bit", "16 of its 16 images"):
        assert said in " ".join(printed.split())
        assert said in (out / "index.html").read_text()
    succeeds(*arguments, "--fid", weights, "--fid_reference", out, "--out", standard / "again")
    again = report_of(standard / "again")
    assert again["student"]["fid"] == report["student"]["fid"]
    assert "kid" not in again["student"]


def test_mistakes_are_told_before_anything_is_measured(arguments, standard, monkeypatch):
    monkeypatch.setattr("fdistill.cli.commands.evaluate.evaluate_models", None)
    np.savez(standard / "wrong.npz", mean=np.zeros(3))
    fid = ["--fid", standard / "inception.pth"]
    for flags, word in (
        (["--fid", "nowhere.pth"], "nowhere.pth"),
        (["--fid_reference", standard / "real"], "fid_reference"),
        ([*fid, "--fid_reference", standard / "wrong.npz"], "sigma"),
        ([*fid, "--fid_samples", 1], "fid_samples"),
        (["--clip", standard / "clip.pth"], "MODEL=FILE"),
    ):
        assert word in one_error_line(fdistill(*arguments, *flags, "--out", standard / "out"))
    assert not (standard / "out").exists()


def test_without_a_reference_the_training_split_is_one(arguments, standard):
    out = standard / "out"
    succeeds(*arguments, "--fid", standard / "inception.pth", "--out", out)
    assert report_of(out)["fid_setup"]["networks"]["inception"]["reference_count"] == 36

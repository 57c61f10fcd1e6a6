"""Students of several steps: the exported folder keeps them whole, and stock diffusers makes their pixels."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from fdistill.core.weight_files import CheckpointError
from fdistill.io.export import export_folder
from fdistill.io.export.pipeline import OneStepPipeline
from fdistill.io.load import read_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, DiffusersUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

pytestmark = pytest.mark.system  # seconds, too many for make check

LEVELS = {2: [5.0, 0.8], 4: [80.0, 3.0, 0.9, 0.1]}
UNRULY = [80 * math.exp(-k) for k in range(8)]  # no scheduler of diffusers has them
NETWORKS = {
    "stock": lambda: DiffusersUNet(widths=[8, 16], groups=4, num_classes=3),
    "own": lambda: MLP(dim=3, width=8, depth=2, num_classes=3),
}
CARDS = """
import os, sys
sys.modules["fdistill"] = None  # an import of it raises ImportError
import numpy as np
for folder in sys.argv[1:]:
    os.chdir(os.path.dirname(folder))
    code = open(os.path.join(folder, "README.md")).read().split("```python\\n")[1].split("```")[0]
    exec(code.replace("generator=", "output_type='np', generator="))
    np.save(folder + ".npy", samples)
"""


def student(levels, network="stock", seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GenerativeModel.student(Denoiser(NETWORKS[network](), EDM(0.6)), levels, {"seed": 2})


def pixels(model, n):
    """In the units of diffusers, [n, H, W, C] in [0, 1]."""
    return (model.sample(model.noise(n, 0), model.labels(n)).permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1).numpy()


def test_code_of_the_model_card_makes_the_same_pixels_in_stock_diffusers(stock_process, tmp_path):
    folders = [export_folder(student(levels), tmp_path / f"of_{steps}") for steps, levels in LEVELS.items()]
    assert "num_inference_steps=2" in (folders[0] / "README.md").read_text()
    assert "num_inference_steps=None, timesteps=[" in (folders[1] / "README.md").read_text()
    outcome = stock_process(CARDS, *folders)
    assert "warn" not in outcome.err.lower()
    for folder, levels in zip(folders, LEVELS.values(), strict=True):
        own = pixels(student(levels), 16)
        np.testing.assert_allclose(np.load(f"{folder}.npy"), own, rtol=0, atol=1e-5)
        assert own.std() > 0.05
        assert np.abs(own - pixels(student(levels[:1]), 16)).mean() > 0.01  # its first step alone is another image


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("levels", [*LEVELS.values(), UNRULY], ids=len)
def test_folder_reads_back_exactly(network, levels, tmp_path):
    model = student(levels, network)
    first = read_folder(export_folder(model, tmp_path / "first"))
    found = read_folder(export_folder(first, tmp_path / "second"))
    assert (found.kind, found.facts, found.sigmas.tolist()) == ("student", {"seed": 2}, levels)
    noise, labels = model.noise(4, 0), model.labels(4)
    torch.testing.assert_close(found.sample(noise, labels), model.sample(noise, labels), rtol=0, atol=0)


def test_levels_that_diffusers_does_not_have_leave_the_folder_to_our_pipeline(tmp_path):
    folder = export_folder(student(UNRULY), tmp_path / "model")
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == ["pipeline", "OneStepPipeline"]
    assert "or no scheduler of it has these noise levels" in (folder / "README.md").read_text()


@pytest.mark.parametrize("levels", LEVELS.values(), ids=len)
def test_our_pipeline_makes_every_step_of_a_seed_or_of_latents(levels):
    model = student(levels, "own")
    pipeline, labels = OneStepPipeline(model), [0, 1, 2]
    expected = model.sample(model.noise(3, 0), torch.tensor(labels))
    seeded = {"generator": torch.Generator().manual_seed(0)}
    for given in (seeded, {"latents": model.noise(3, 0), "num_inference_steps": len(levels)}):
        assert torch.equal(pipeline(3, class_labels=labels, output_type="pt", **given).images, expected)


def test_our_pipeline_takes_no_other_number_of_steps_and_no_noise_of_one_step():
    pipeline = OneStepPipeline(student(LEVELS[4], "own"))
    with pytest.raises(ValueError, match="num_inference_steps"):
        pipeline(2, num_inference_steps=1)
    with pytest.raises(ValueError, match=r"expected \(2, 4, 3\), got \(2, 3\)"):
        pipeline(2, latents=torch.zeros(2, 3))


def test_card_tells_steps_and_levels(tmp_path):
    card = (export_folder(student(LEVELS[4]), tmp_path / "model") / "README.md").read_text()
    assert "\n- few-step-generation\n" in card
    assert "A 4-step generator: samples of shape 1x8x8 of 3 classes, 4 network evaluations per sample" in card
    assert "\n- sigma_init: 80.0\n- renoise_levels: [3.0, 0.9, 0.1]\n" in card
    assert "It makes one step unless asked for all of them" in card


@pytest.mark.parametrize("sigmas", [[5.0, 5.0], [5.0, -1.0], [5.0, "low"], 5.0, [5.0, [1.0]]], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_levels_that_are_none_are_told_in_one_line(network, sigmas, tmp_path):
    folder = export_folder(student([5.0, 1.0], network), tmp_path / "model")
    record = json.loads((folder / "fdistill.json").read_text()) | {"sigmas": sigmas}
    (folder / "fdistill.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError) as error:
        read_folder(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_one_step_needs_no_record(tmp_path):
    folder = export_folder(student(5.0), tmp_path / "model")
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "fdistill.json").unlink()
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    first, second = (read_folder(tmp_path / name).sample(noise, torch.tensor([0, 1])) for name in ("model", "copy"))
    assert torch.equal(first, second)

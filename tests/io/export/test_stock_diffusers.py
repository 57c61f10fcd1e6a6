"""Stock diffusers, in a process that cannot import fdistill, runs the exported folder and makes the same pixels."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from cli_runs import succeeds
from safetensors.torch import load_file

from fdistill.io.export import export_folder
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

STOCK = """
import sys
sys.modules["fdistill"] = None  # an import of it raises ImportError
import numpy as np, torch
from diffusers import ConsistencyModelPipeline

def images(folder, n, seed, labels):
    pipeline = ConsistencyModelPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    given = pipeline(n, class_labels=labels, generator=generator, output_type="np").images
    drawn = pipeline(64, generator=generator, output_type="np").images  # the pipeline draws the classes itself
    assert np.isfinite(drawn).all()
    return given

out, classes, colour = sys.argv[1:]
np.savez(out, classes=images(classes, 12, 3, [i % 10 for i in range(12)]), colour=images(colour, 3, 11, None))
assert not any(name.startswith("fdistill.") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """An exported student of RGB images without classes."""
    torch.manual_seed(0)
    network = DiffusersUNet(
        resolution=16, channels=3, widths=[8, 16], groups=4, attention_levels=[1], blocks_per_level=2
    )
    model = GenerativeModel.student(Denoiser(network, EDM(0.6)), 4.0)
    return export_folder(model, tmp_path_factory.mktemp("colour") / "model")


@pytest.fixture(scope="module")
def stock(stock_process, exported, colour, tmp_path_factory):
    """What stock diffusers makes of both folders, and what the code of the first one's model card prints."""
    out = tmp_path_factory.mktemp("stock") / "stock.npz"
    code = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    card = f"import os; os.chdir({str(exported.parent)!r})\n{code}print(len(samples), samples[0].size, samples[0].mode)"
    outcome = stock_process(STOCK + card, out, exported, colour)
    assert "fdistill" not in outcome.err
    with np.load(out) as file:
        return dict(file) | {"printed": outcome.out}


def own_images(checkpoint, out, *flags):
    """fdistill sample in the units of the pipeline, [n, H, W, C] in [0, 1]."""
    succeeds("sample", "--checkpoint", checkpoint, "--out", out, *flags)
    with np.load(out) as file:
        return (file["samples"].transpose(0, 2, 3, 1) / 2 + 0.5).clip(0, 1)


def test_class_conditional_student_makes_the_same_pixels(stock, exported, student_checkpoint, tmp_path):
    for source in (student_checkpoint, exported):
        own = own_images(source, tmp_path / "own.npz", "--n", 12, "--seed", 3)
        np.testing.assert_allclose(stock["classes"], own, rtol=0, atol=1e-5)
    assert own.std() > 0.05


def test_unconditional_colour_student_makes_the_same_pixels(stock, colour, tmp_path):
    own = own_images(colour, tmp_path / "own.npz", "--n", 3, "--seed", 11)
    np.testing.assert_allclose(stock["colour"], own, rtol=0, atol=1e-5)
    assert own.std() > 0.05


def test_no_class_row_is_left_behind(exported, student_checkpoint):
    rows = load_file(exported / "unet" / "diffusion_pytorch_model.safetensors")["class_embedding.weight"]
    trained = torch.load(student_checkpoint, weights_only=True)["state_dict"]
    trained = trained["ema.average.network.unet.class_embedding.weight"]
    assert (len(rows), len(trained)) == (10, 11)
    assert torch.equal(rows, trained[:10])
    assert json.loads((exported / "unet" / "config.json").read_text())["num_class_embeds"] == 10


def test_folder_holds_safetensors_and_text_only(exported):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "fdistill.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


def test_code_of_the_model_card_runs(stock):
    assert stock["printed"] == "16 (8, 8) L\n"


def test_a_student_that_starts_at_unit_variance_is_written_so_that_it_does(tmp_path):
    """The scheduler of a stock pipeline would start from sigma times the noise."""
    model = GenerativeModel.student(Denoiser(DiffusersUNet(widths=[8, 16]), EDM(0.3)), 1.0, {"seed": 1}, "unit")
    again = load_model(export_folder(model, tmp_path / "model"))
    assert again.start == "unit"
    torch.testing.assert_close(again.sample(model.noise(4, 0)), model.sample(model.noise(4, 0)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="without first_step"):
        export_folder(dataclasses.replace(model, first_step=(model.denoiser, 1.0)), tmp_path / "other")


@pytest.mark.parametrize("sigma_init", [0.5, 80.0])
def test_folder_reads_back_exactly(sigma_init, tmp_path):
    from fdistill.io.load import read_folder

    model = GenerativeModel.student(
        Denoiser(DiffusersUNet(widths=[8, 16], num_classes=3), EDM(0.3)), sigma_init, {"seed": 1}
    )
    found = read_folder(export_folder(model, tmp_path / "model"))
    assert (found.kind, found.facts, found.sigmas.tolist()) == ("student", {"seed": 1}, [sigma_init])
    noise, labels = model.noise(4, 0), model.labels(4)
    torch.testing.assert_close(found.sample(noise, labels), model.sample(noise, labels), rtol=0, atol=0)

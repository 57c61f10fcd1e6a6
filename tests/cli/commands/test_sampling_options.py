"""`fdistill sample` and `fdistill export` take sampler, grid and guidance in place of a teacher's own."""

import numpy as np
import pytest
import torch
from cli_runs import fdistill, one_error_line, succeeds
from tiny_runs import mlp

from fdistill.cli.commands.sampling import resampled
from fdistill.io.export import export_folder
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.networks import DiffusersUNet
from fdistill.sampling import GDDIM, Euler, Heun
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import GivenGrid
from fdistill.theory.noise_levels import karras_grid
from fdistill.theory.paths import VPLinear
from fdistill.theory.preconditioning import EDM, EpsPrediction


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher of 3 classes, a worse one, one without classes, and a student."""
    place = tmp_path_factory.mktemp("models")
    models = {
        "teacher": GenerativeModel.teacher(mlp(num_classes=3), 6, 0.05, 9.0),
        "worse": GenerativeModel.teacher(mlp(num_classes=3, seed=1), 3, 0.05, 9.0),
        "unconditional": GenerativeModel.teacher(mlp(), 6, 0.05, 9.0),
        "student": GenerativeModel.student(mlp(), 3.0),
    }
    return {name: str(export_folder(model, place / name)) for name, model in models.items()}


def drawn(path):
    return torch.from_numpy(np.load(path)["samples"])


def test_options_of_the_command_line_are_the_model_built_by_hand(folders, tmp_path):
    out, worse = tmp_path / "a.npz", folders["worse"]
    options = ["--sampler", "GDDIM", "--sampler.eta", "1.2", "--steps", "5", "--guidance", "2", "--guide", worse]
    printed = succeeds(
        "sample", "--checkpoint", folders["teacher"], "--n", 7, "--out", out, *options, "--guidance_interval", 0.2, 3
    )
    model, guide = load_model(folders["teacher"]), load_model(worse).denoiser
    model = GenerativeModel.teacher(model.denoiser, 5, 0.05, 9.0, Guidance(2.0, 0.2, 3.0, guide), sampler=GDDIM(1.2))
    assert f"{model.evaluations} network evaluations each" in printed
    torch.testing.assert_close(drawn(out), model.sample(model.noise(7, 0), model.labels(7)))


def test_an_exported_folder_keeps_what_was_asked(folders, tmp_path):
    options = ["--sampler", "Euler", "--grid", "GivenGrid", "--grid.levels", "[5.0, 1.0, 0.0]", "--guidance", "1.5"]
    succeeds("export", folders["teacher"], tmp_path / "out", *options, "--guide", folders["worse"])
    model = load_model(tmp_path / "out")
    assert (type(model.sampler), model.sigmas.tolist()) == (Euler, [5.0, 1.0, 0.0])
    assert (model.guidance.scale, model.evaluations) == (1.5, 4)
    assert torch.equal(
        model.guidance.guide.network.output.weight, load_model(folders["worse"]).denoiser.network.output.weight
    )
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- sampler: Euler()" in card
    assert "- guidance when sampled: 1.5 by a guide" in card
    succeeds("export", tmp_path / "out", tmp_path / "plain", "--guidance", "1", "--sampler", "Heun")
    assert load_model(tmp_path / "plain").evaluations == 3
    assert "guidance when sampled" not in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("sigmas", [3.0, [3.0, 0.5]])
def test_a_temperature_scales_all_noise_of_a_student_from_command_to_folder(sigmas, tmp_path):
    cold = GenerativeModel.student(mlp(), sigmas)
    export_folder(cold, tmp_path / "cold")
    succeeds("export", tmp_path / "cold", tmp_path / "warm", "--temperature", 1.25)
    warm, noise = load_model(tmp_path / "warm"), cold.noise(5, 0)
    assert torch.equal(warm.sample(noise), cold.sample(1.25 * noise))
    assert "- temperature: 1.25" in (tmp_path / "warm" / "README.md").read_text(encoding="utf-8")
    succeeds("sample", "--checkpoint", tmp_path / "warm", "--n", 5, "--out", tmp_path / "a.npz", "--temperature", 1)
    assert torch.equal(drawn(tmp_path / "a.npz"), cold.sample(noise))


def test_what_is_not_given_stays(folders):
    model = load_model(folders["teacher"])
    assert resampled(model) is model
    model.guidance = Guidance(2.0, 0.2, 3.0)
    changed = resampled(model, sampler=Euler(), guidance=3.0)
    assert (changed.guidance, type(changed.sampler)) == (Guidance(3.0, 0.2, 3.0), Euler)
    assert torch.equal(changed.sigmas, model.sigmas)
    finer = resampled(model, steps=9)
    assert torch.allclose(finer.sigmas, karras_grid(9, 0.05, 9.0))
    assert (finer.guidance, type(finer.sampler)) == (model.guidance, Heun)
    assert resampled(model, grid=GivenGrid([3.0, 1.0])).sigmas.tolist() == [3.0, 1.0]
    assert resampled(model, guidance=1.0).guidance == 1.0


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            "student",
            "--sampler Euler --steps 3",
            "a student is sampled by the steps it was trained with: leave --sampler",
        ),
        ("student", "--guidance 2", "leave --guidance out"),
        ("teacher", "--steps 3 --grid KarrasGrid", "give --steps or --grid, not both"),
        ("teacher", "--steps 0", "at least one step: got 0"),
        ("teacher", "--sampler DDIM --sampler.eta 1.5", "eta of DDIM lies in [0, 1]"),
        ("teacher", "--sampler Renoise", "Renoise; did you mean Renoising?"),
        ("teacher", "--sampler GDDIM --sampler.eat 1", "did you mean eta?"),
        ("teacher", "--guidance_interval 0.1 2", "at a guidance scale other than 1"),
        ("teacher", "--guidance 2 --guidance_interval 0.1 2 3", "two noise levels, low and high: got [0.1, 2.0, 3.0]"),
        ("teacher", "--guidance 2 --guide STUDENT", "a guide denoises at every noise level"),
        ("teacher", "--guidance 2 --guide nowhere", "no checkpoint at nowhere"),
        (
            "unconditional",
            "--guidance 2 --guide TEACHER",
            "a guide sees the samples and the condition of what it guides",
        ),
        ("unconditional", "--guidance 2", "needs a worse teacher: give --guide, or leave it out"),
        (
            "teacher",
            "--sampler Restart --sampler.sigma_low .01 --sampler.sigma_high .02",
            "comes down to: expected one",
        ),
    ],
)
def test_what_cannot_be_is_one_line(model, options, words, folders, tmp_path):
    given = options.replace("STUDENT", folders["student"]).replace("TEACHER", folders["teacher"]).split()
    out = tmp_path / "a.npz"
    line = one_error_line(fdistill("sample", "--checkpoint", folders[model], "--n", 2, "--out", out, *given))
    assert words in line
    assert not out.exists()


def test_a_report_of_another_sampling_is_not_put_on_the_card(folders, tmp_path):
    outcome = fdistill("export", folders["teacher"], tmp_path / "out", "--report", "r.json", "--steps", "3")
    assert "measured the model as it was sampled before" in one_error_line(outcome)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--guidance", "2", "--guidance_interval", "20", "30"], "guidance acts at none of the levels from 9 to 0.05"),
        (["--sampler", "GDDIM(eta=1.0)"], "GDDIM(eta=1.0): expected one of DDIM, "),
        (["--sampler", "Sampler"], "is abstract, got Sampler: expected one of DDIM, "),
        (["--grid", "missing.yaml"], "missing.yaml"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(options, words, folders, tmp_path):
    result = fdistill("sample", "--checkpoint", folders["teacher"], "--out", tmp_path / "a.npz", *options)
    assert words in one_error_line(result)
    assert not (tmp_path / "a.npz").exists()


def test_a_network_is_not_asked_beyond_the_ends_of_its_path():
    model = GenerativeModel.teacher(Denoiser(mlp().network, EpsPrediction(VPLinear())), 6, 0.05, 9.0)
    with pytest.raises(ValueError, match=r"152\.167"):
        resampled(model, grid=GivenGrid([1000.0, 0.5, 0.0]))


def test_a_temperature_is_a_students_and_positive(folders):
    with pytest.raises(ValueError, match=r"noise of a student: got 1\.1 for a teacher"):
        resampled(load_model(folders["teacher"]), temperature=1.1)
    for impossible in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"got {impossible}"):
            resampled(load_model(folders["student"]), temperature=impossible)


def test_a_stock_pipeline_has_no_temperature(tmp_path):
    model = GenerativeModel.student(Denoiser(DiffusersUNet(8, 1, (8, 8)), EDM(0.5)), 5.0)
    model.temperature = 1.1
    with pytest.raises(ValueError, match="--temperature 1"):
        export_folder(model, tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_nothing_but_a_model_of_ours_is_replaced(folders, tmp_path, monkeypatch):
    mine, model = tmp_path / "mine", folders["teacher"]
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious", encoding="utf-8")
    assert "got one with thesis.tex" in one_error_line(fdistill("export", model, mine))
    assert "would replace" in one_error_line(fdistill("export", model, mine.parent, "--report", mine / "report.json"))
    monkeypatch.chdir(mine)
    assert "would replace" in one_error_line(fdistill("export", model, "."))
    assert [file.name for file in mine.iterdir()] == ["thesis.tex"]
    succeeds("export", model, tmp_path / "new")
    succeeds("export", model, tmp_path / "new", "--steps", "3")
    assert len(load_model(tmp_path / "new").sigmas) == 4


def test_samples_that_are_not_finite_are_not_written(tmp_path):
    denoiser = mlp()
    with torch.no_grad():
        denoiser.network.output.bias.fill_(torch.nan)
    folder = export_folder(GenerativeModel.student(denoiser, 3.0), tmp_path / "broken")
    result = fdistill("sample", "--checkpoint", folder, "--n", "3", "--out", tmp_path / "a.npz")
    assert "3 of 3 samples are not finite: nothing was written" in one_error_line(result)
    assert not (tmp_path / "a.npz").exists()

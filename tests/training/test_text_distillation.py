"""From a stock text-to-image pipeline to a student that stock diffusers runs, by the commands that import prints."""

import shlex

import diffusers
import numpy as np
import pytest
import torch
from cli_runs import CONFIGS, fdistill, last, one_error_line, succeeds

from fdistill import load
from fdistill.data.prompt_files import PromptFiles
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.stock_pipeline import prompt_condition
from fdistill.models.guidance import Guidance

PROMPTS = ["a red seven", "a blue two", "a white one", "a green four"]
SMALL = ("--trainer.accelerator", "cpu", "--trainer.max_steps", 3, "--data.batch_size", 4)


@pytest.fixture(scope="module", params=["sd", "sd3"])
def distilled(request, folders, tmp_path_factory):
    """Folder of a teacher, and the checkpoint of its student after the printed commands."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    out = succeeds("import", folders(request.param)[0], root / "teacher", "--resolution", 16, "--guidance", 3)
    (printed,) = [line.removeprefix("to distil it: ") for line in out.splitlines() if line.startswith("to distil")]
    printed = printed.replace("PROMPTS.txt", str(root / "prompts.txt")).replace("configs/", f"{CONFIGS}/")
    printed = printed.replace("--out prompts", f"--out {root}/prompts").replace(
        "folder prompts", f"folder {root}/prompts"
    )
    encode, fit = (shlex.split(command)[1:] for command in printed.split(" && "))
    succeeds(*encode)
    grid = '--trainer.callbacks+={"class_path": "SampleGrid", "init_args": {"every_n_turns": 2, "num_samples": 4}}'
    succeeds(*fit, *SMALL, "--trainer.default_root_dir", root / "run", grid)
    return root / "teacher", last(root / "run")


def test_the_student_learns_and_its_pictures_are_drawn(distilled):
    teacher, student = (load(path).denoiser for path in distilled)
    moved = [not torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert len(list((distilled[1].parents[1] / "samples").glob("*.png"))) == 1


def test_the_exported_pipeline_draws_what_the_command_draws(distilled, tmp_path):
    folder = tmp_path / "student"
    succeeds("export", distilled[1], folder)
    succeeds("sample", "--checkpoint", folder, "--n", 1, "--prompt", PROMPTS[0], "--out", tmp_path / "ours.npz")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    guided = {} if "unet" in pipeline.components else {"guidance_scale": 0.0}
    call = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "np", **guided}
    (theirs,) = pipeline(PROMPTS[0], generator=torch.manual_seed(0), **call).images
    ours = np.load(tmp_path / "ours.npz")["samples"][0].transpose(1, 2, 0) / 2 + 0.5
    np.testing.assert_allclose(ours.clip(0, 1), theirs, atol=1e-5)


def test_a_checkpoint_draws_prompts_in_turn(distilled, tmp_path):
    several = ("--n", 4, "--prompt", str(PROMPTS[:2]).replace("'", '"'), "--out", tmp_path / "four.npz")
    succeeds("sample", "--checkpoint", distilled[1], *several)
    alone = ("--n", 1, "--prompt", PROMPTS[0], "--out", tmp_path / "one.npz")
    succeeds("sample", "--checkpoint", distilled[1], *alone)
    four, one = (np.load(tmp_path / f"{name}.npz")["samples"] for name in ("four", "one"))
    np.testing.assert_allclose(four[:1], one, atol=1e-5)


def test_pairs_are_what_the_teacher_makes_of_prompts_in_turn(distilled, tmp_path):
    teacher, folder = load(distilled[0]), distilled[0].parent / "prompts"
    succeeds("pairs", distilled[0], tmp_path / "p.safetensors", "--n", 6, "--prompts", folder)
    pairs = TeacherPairs.load(tmp_path / "p.safetensors")
    condition = PromptFiles(folder).condition([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(pairs.samples, teacher.sample(teacher.noise(6, 0), condition), rtol=1e-5, atol=1e-5)
    assert "already" in succeeds("pairs", distilled[0], tmp_path / "p.safetensors", "--n", 6, "--prompts", folder)
    assert "--prompts" in one_error_line(fdistill("pairs", distilled[0], tmp_path / "q.safetensors"))


def test_a_teacher_of_prompts_is_guided_as_asked(distilled, tmp_path):
    told = ("--n", 1, "--prompt", PROMPTS[0], "--guidance", 1.5, "--guidance_interval", 0.1, 5)
    succeeds("sample", "--checkpoint", distilled[0], *told, "--out", tmp_path / "x.npz")
    teacher = load(distilled[0])
    teacher.guidance = Guidance(1.5, 0.1, 5.0)
    samples = teacher.decode(teacher.sample(teacher.noise(1, 0), prompt_condition(teacher, PROMPTS[:1], 1)))
    np.testing.assert_allclose(np.load(tmp_path / "x.npz")["samples"], samples, atol=1e-5)


def test_what_a_user_forgets_is_one_line(distilled, tmp_path):
    out = ("--n", 2, "--out", tmp_path / "x.npz")
    assert "--prompt" in one_error_line(fdistill("sample", "--checkpoint", distilled[0], *out))
    assert "no prompts" in one_error_line(fdistill("sample", "--checkpoint", "digits-student", "--prompt", "x", *out))


def test_a_student_that_no_stock_scheduler_starts_is_told_before_it_learns(distilled, tmp_path):
    data = ("--data", "Prompts", "--data.folder", distilled[0].parent / "prompts", "--data.sample_shape", "[4,8,8]")
    files = ("--config", CONFIGS / "trainer.yaml", "--config", CONFIGS / "imported.yaml", "--model.start", "unit")
    run = ("--model.teacher", distilled[0], "--model.sigma_init", 3.3, "--trainer.default_root_dir", tmp_path / "run")
    outcome = fdistill("fit", *files, *run, *data, *SMALL)
    assert outcome.status == 0, outcome.err
    assert "export would refuse" in outcome.err

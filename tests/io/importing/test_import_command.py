"""`fdistill import` writes a teacher that is sampled and distilled by the two commands it prints."""

import contextlib
import shlex
import shutil

import numpy as np
import pytest
from cli_runs import CONFIGS, fdistill, succeeds
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline
from stock_models import ddim, dit, save, unet, vae

from fdistill.evaluation.sources import open_source
from fdistill.io.export.pipeline import OneStepPipeline
from fdistill.io.load import load_model


@pytest.fixture(scope="module")
def latent_source(tmp_path_factory):
    return save(DiTPipeline(dit(), vae(), ddim()), tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def teacher(latent_source, tmp_path_factory):
    """The imported DiT, and what the import printed."""
    folder = tmp_path_factory.mktemp("imported") / "teacher"
    return folder, succeeds("import", latent_source, folder, "--num_steps=2").splitlines()


def printed(lines, beginning):
    """The arguments of the printed command."""
    (line,) = [line for line in lines if line.startswith(beginning)]
    return shlex.split(line.split(":", 1)[1])[1:]


def quick(folder):
    trainer = {"accelerator": "cpu", "max_steps": 3, "logger": "false", "enable_progress_bar": "false"}
    trainer |= {"default_root_dir": folder, "log_every_n_steps": 1}
    grid = {"class_path": "SampleGrid", "init_args": {"every_n_turns": 3, "num_samples": 2}}
    last = {"class_path": "LastCheckpoint", "init_args": {"every_n_turns": 3}}
    return [f"--trainer.{name}={value}" for name, value in trainer.items()] + [f"--trainer.callbacks={[last, grid]}"]


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """Last checkpoint of three turns of the printed command."""
    folder = tmp_path_factory.mktemp("student")
    with contextlib.chdir(CONFIGS.parent):
        succeeds(*printed(teacher[1], "to distil it"), *quick(folder), "--data.batch_size=4")
    return folder / "checkpoints" / "last.ckpt"


def shown(checkpoint, folder, *more):
    succeeds("sample", "--checkpoint", checkpoint, "--n=3", f"--out={folder / 'samples.npz'}", *more)
    return np.load(folder / "samples.npz")["samples"]


def test_it_says_what_it_found(teacher, latent_source):
    folder, lines = teacher
    assert lines[0].startswith(f"{latent_source}: DiTPipeline of diffusers, StockDiT of 29,")
    assert lines[1].startswith("predicts: EpsPrediction on DDPMPath(beta_start=0.0001, beta_end=0.02, ")
    assert lines[2] == 'makes: latents 4x8x8, which AutoencoderKL decodes to 3x16x16; classes: 5 and "no class"'
    assert lines[3] == f"wrote {folder}: a teacher of 3 network evaluations per sample"
    assert {file.name for file in folder.iterdir()} == {"README.md", "denoiser.safetensors", "fdistill.json", "vae"}


def test_the_printed_command_shows_images_of_a_latent_teacher(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeeds(*printed(teacher[1], "to see it"), "--n=2")
    assert (tmp_path / "samples.png").is_file()
    images = shown(teacher[0], tmp_path)
    assert images.shape == (3, 3, 16, 16)
    assert np.abs(images).max() <= 1


def test_the_printed_command_distils_it_and_the_student_makes_images(student, tmp_path):
    images = shown(student, tmp_path)
    assert images.shape == (3, 3, 16, 16)
    assert np.isfinite(images).all()
    assert (student.parents[1] / "samples" / "0000003.png").is_file()


def test_the_exported_student_has_its_decoder_with_it(student, tmp_path):
    succeeds("export", student, tmp_path / "student")
    images = shown(student, tmp_path)
    assert np.array_equal(shown(tmp_path / "student", tmp_path), images)
    pipeline = OneStepPipeline.from_pretrained(tmp_path / "student")
    noise = pipeline.model.noise(3, 0)
    made = pipeline(3, class_labels=[0, 1, 2], latents=noise, output_type="pt").images.numpy()
    assert np.array_equal(made, images)
    assert pipeline(3, latents=noise, output_type="latent").images.shape == (3, 4, 8, 8)
    assert pipeline(1, latents=noise[:1]).images[0].size == (16, 16)


def test_an_evaluation_compares_the_images(teacher, student):
    for checkpoint in (teacher[0], student):
        source = open_source(checkpoint)
        assert source.sample_shape == (3, 16, 16)
        assert source.draw(2, 0).shape == (2, 3, 16, 16)


def test_a_student_whose_teacher_has_gone_says_where_its_decoder_was(student, teacher, tmp_path):
    model = load_model(student)
    assert model.decoder.folder == (teacher[0] / "vae").resolve()
    moved = teacher[0].rename(tmp_path / "moved")
    try:
        outcome = fdistill("sample", "--checkpoint", student, f"--out={tmp_path / 'x.png'}")
        assert outcome.status == 1
        assert "teacher/vae/config.json: expected the VAE of these latents" in outcome.err
    finally:
        moved.rename(teacher[0])


def test_pixels_need_no_decoder_and_classes_are_counted(tmp_path):
    source = save(DDPMPipeline(unet(num_class_embeds=3), DDPMScheduler()), tmp_path / "ddpm")
    lines = succeeds("import", source, tmp_path / "teacher", "--sigma_data=0.6").splitlines()
    assert lines[2] == 'makes: samples 3x8x8; classes: 3, no "no class"'
    assert "--model.sigma_init 3 --data.sample_shape '[3,8,8]' --data.num_classes 3" in lines[-1]
    assert shown(tmp_path / "teacher", tmp_path).shape == (3, 3, 8, 8)
    with contextlib.chdir(CONFIGS.parent):
        succeeds(*printed(lines, "to distil it"), *quick(tmp_path / "run"), "--data.batch_size=4")


def test_a_folder_that_is_there_is_replaced_only_when_asked(latent_source, tmp_path):
    (tmp_path / "mine.txt").write_text("notes")
    outcome = fdistill("import", latent_source, tmp_path)
    assert outcome.status == 1
    assert outcome.err == (f"fdistill: error: {tmp_path} is there already: name another folder, or give --overwrite\n")
    assert (tmp_path / "mine.txt").read_text() == "notes"
    line = fdistill("import", latent_source, tmp_path, "--overwrite").err
    assert "replaced only where it holds an exported model" in line
    assert "got one with mine.txt" in line
    (tmp_path / "mine.txt").unlink()
    for steps in (1, 2):
        succeeds("import", latent_source, tmp_path / "model", "--overwrite", f"--num_steps={steps}")
    assert len(load_model(tmp_path / "model").sigmas) == 3


def test_a_source_never_overwrites_itself(latent_source):
    for target in (latent_source, latent_source.parent):
        outcome = fdistill("import", latent_source, target, "--overwrite")
        assert outcome.err == f"fdistill: error: {target} holds what is imported: name another folder\n"
    assert (latent_source / "model_index.json").is_file()


def test_nothing_that_is_read_is_overwritten_and_nothing_is_written_among_it(latent_source, tmp_path):
    source = shutil.copytree(latent_source, tmp_path / "source")
    before = sorted(source.rglob("*"))

    def refused(target, *arguments, of=source):
        outcome = fdistill("import", of, target, "--overwrite", *arguments)
        assert outcome.status == 1
        assert sorted(source.rglob("*")) == before
        return outcome.err

    for inside in ("transformer", "vae", "scheduler", "new", "new/er"):
        assert refused(source / inside) == (
            f"fdistill: error: {source / inside} lies inside what is imported: name another folder\n"
        )
    alone = source / "transformer"
    assert "holds what is imported" in refused(source / "scheduler", of=alone)  # nobody named it, and it is read
    assert "holds what is imported" in refused(source / "vae", "--vae", source / "vae", of=alone)
    assert "lies inside what is imported" in refused(source / "vae" / "x", "--vae", source / "vae", of=alone)
    assert "holds what is imported" in refused(source, of=alone)
    (tmp_path / "link").symlink_to(source)
    assert "lies inside what is imported" in refused(tmp_path / "link" / "vae")
    (source / "scheduler").rename(tmp_path / "scheduler")  # beside a whole pipeline it is nobody's
    (source / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").rename(source / "scheduler" / "scheduler_config.json")
    (tmp_path / "scheduler" / "fdistill.json").touch()
    succeeds("import", source, tmp_path / "scheduler", "--overwrite", "--num_steps=1")


def test_printed_commands_are_quoted(latent_source, tmp_path):
    lines = succeeds("import", latent_source, tmp_path / "a b;c", "--num_steps=1").splitlines()
    assert printed(lines, "to see it")[-1] == str(tmp_path / "a b;c")
    assert str(tmp_path / "a b;c") in printed(lines, "to distil it")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in fdistill("import", tmp_path / "gone", tmp_path / "file").err
    assert "is a file; name another place" in fdistill("import", tmp_path / "gone", tmp_path / "file" / "x").err


def test_a_failed_import_leaves_nothing(latent_source, tmp_path):
    outcome = fdistill("import", latent_source, tmp_path / "teacher", "--scheduler", tmp_path / "x.json")
    assert outcome.status == 1
    assert "has no use for scheduler" in outcome.err
    assert list(tmp_path.iterdir()) == []

"""fdistill encode: images become latents once; what was interrupted goes on, and nothing else is ever replaced."""

import json
import shutil

import pytest
import torch
from cli_runs import CONFIGS, fdistill, one_error_line, succeeds, tiny_trainer, write_yaml
from diffusers import AutoencoderKL
from latent_folders import pictures
from safetensors import SafetensorError
from stock_models import dit, save, vae
from tiny_runs import fit, teacher_training

from fdistill.data import LatentFolder
from fdistill.data import encode_latents as encoding
from fdistill.io.load import load_model
from fdistill.models.networks import DiffusersUNet
from fdistill.models.vae import Decoder
from fdistill.training.callbacks import sample_grid
from fdistill.training.callbacks.sample_grid import nearest_images


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """60 images in two classes, and a VAE."""
    root = tmp_path_factory.mktemp("sources")
    return pictures(root / "images", 60, classes=2, side=16), save(vae(scaling_factor=0.4), root / "own_vae")


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(encoding, "FILE_BYTES", 20 * 4 * 8 * 8 * 4 * 2)  # 20 images


def encode(sources, out, *options):
    images, coder = sources
    return fdistill("encode", images, "--vae", coder, "--out", out, "--resolution", 16, *options)


@pytest.fixture(scope="module")
def encoded(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "FILE_BYTES", 20 * 4 * 8 * 8 * 4 * 2)
        outcome = encode(sources, out, "--flips=false")
    assert outcome.status == 0, outcome.err
    return out, outcome.out


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_latents_are_written_with_what_made_them(encoded, sources):
    out, printed = encoded
    assert printed.startswith(f"wrote latents 4 x 8 x 8 of 60 images to {out}; 60 were encoded now\n")
    assert f"{LatentFolder(str(out)).data_std():.4g}" in printed
    described = json.loads((out / "latents.json").read_text())
    assert [file["images"] for file in described["files"]] == [20, 20, 20]
    assert (described["class_names"], described["made"]["vae"]) == (["a", "b"], "AutoencoderKL")
    assert described["made"]["scaling_factor"] == 0.4
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Decoder(out / "vae")(latents), Decoder(sources[1])(latents))


def test_the_same_latents_are_found_and_not_computed_again(encoded, sources):
    before = contents(encoded[0])
    assert encode(sources, encoded[0]).out.endswith("images already; nothing was computed\n")
    assert contents(encoded[0]) == before


def test_an_interrupted_command_goes_on_and_ends_with_the_same_bytes(encoded, sources, tmp_path, monkeypatch):
    calls, whole = [], Decoder.encode

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == 4:  # in the second file
            raise KeyboardInterrupt
        return whole(self, images)

    monkeypatch.setattr(Decoder, "encode", interrupted)
    assert encode(sources, tmp_path / "latents").status == 130
    assert [path.name for path in (tmp_path / "latents").iterdir()] == ["latents-00000.safetensors"]
    monkeypatch.setattr(Decoder, "encode", whole)
    (tmp_path / "latents" / ".latents-00001.safetensors.0123456789ab.tmp").write_text("half")
    assert "60 images" in (out := succeeds_on(sources, tmp_path / "latents"))
    assert "40 were encoded now" in out
    assert contents(tmp_path / "latents") == contents(encoded[0])


def test_a_command_that_was_killed_while_it_copied_the_vae_goes_on(encoded, sources, tmp_path):
    out = shutil.copytree(encoded[0], tmp_path / "latents")
    for name in (".vae.0123456789ab.tmp", ".vae.0123456789ab.old"):
        shutil.copytree(out / "vae", out / name)
    shutil.rmtree(out / "vae")
    (out / "latents.json").unlink()
    assert succeeds_on(sources, out).endswith("nothing was computed\n")
    assert contents(out) == contents(encoded[0])


def test_what_was_killed_while_it_replaced_latents_can_be_begun_again(encoded, sources, tmp_path):
    out = shutil.copytree(encoded[0], tmp_path / "latents")
    for file in out.glob("latents-*"):
        file.unlink()
    assert "missing" in (line := one_error_line(encode(sources, out)))
    assert line.endswith("give --overwrite, or name another folder")
    succeeds_on(sources, out, "--overwrite")
    assert contents(out) == contents(encoded[0])


def test_a_disk_that_is_full_when_the_vae_is_copied_is_told_and_latents_stay(sources, tmp_path):
    def full(self, folder, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderKL, "save_pretrained", full)
        outcome = encode(sources, tmp_path / "latents")
    assert outcome.status == 1
    line = outcome.err.splitlines()[-1]  # behind the progress bar
    assert line.startswith("fdistill: error: cannot write the VAE to ")
    assert line.endswith("No space left on device (os error 28); name a place with room for it")
    assert not (tmp_path / "latents" / "latents.json").exists()
    assert "60 images already" in succeeds_on(sources, tmp_path / "latents")


def succeeds_on(sources, out, *options):
    outcome = encode(sources, out, *options)
    assert outcome.status == 0, outcome.err
    return outcome.out


def test_other_latents_are_replaced_only_when_told(encoded, sources, tmp_path):
    out = tmp_path / "latents"
    succeeds_on(sources, out, "--half")
    before = contents(out)
    line = one_error_line(encode(sources, out))
    assert line == f"{out} holds other latents: name another folder, or give --overwrite"
    assert contents(out) == before
    (out / "latents.json").unlink()
    assert "is of other latents: name another folder" in one_error_line(encode(sources, out))
    succeeds_on(sources, out, "--overwrite")
    assert contents(out) == contents(encoded[0])


@pytest.mark.parametrize("name", ["notes.txt", "vae/config.json", "model_index.json"])
def test_a_folder_of_anything_else_is_left_alone(name, sources, tmp_path):
    file = tmp_path / "latents" / name
    file.parent.mkdir(parents=True)
    file.write_text("keep me")
    for options in ([], ["--overwrite"]):
        line = one_error_line(encode(sources, tmp_path / "latents", *options))
        assert "latents go to a new folder; name another one" in line
    assert contents(tmp_path / "latents") == {name: b"keep me"}


def test_mistakes_are_told_in_one_line_before_any_work(sources, tmp_path):
    images, coder = sources
    mistakes = {
        "give --vae FOLDER": ["encode", images],
        "expected the VAE": ["encode", images, "--vae", tmp_path],
        "expected a resolution that 2 divides, got 15": ["encode", images, "--vae", coder, "--resolution", 15],
        "batch_size is a number of images": ["encode", images, "--vae", coder, "--resolution", 16, "--batch_size", 0],
        "is an existing folder of images": ["encode", tmp_path / "no", "--vae", coder, "--resolution", 16],
        "lies in the folder of images": ["encode", images, "--vae", coder, "--out", images / "latents"],
    }
    for words, arguments in mistakes.items():
        rest = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        assert words in one_error_line(fdistill(*arguments, *rest))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, sources):
    """The folder of a latent teacher of random weights: a DiT with the same VAE."""
    root = tmp_path_factory.mktemp("teacher")
    save(dit(num_embeds_ada_norm=2), root / "network")
    (root / "scheduler.json").write_text(
        json.dumps({"_class_name": "DDIMScheduler", "num_train_timesteps": 100, "beta_schedule": "linear"})
    )
    options = ["--scheduler", root / "scheduler.json", "--vae", sources[1], "--num_steps", 2]
    succeeds("import", root / "network", root / "teacher", *options)
    return root / "teacher"


@pytest.fixture(scope="module")
def student(encoded, teacher, tmp_path_factory):
    """Two turns of a student on these latents, watched: its run folder, and the pictures that were drawn."""
    root, drawn, draw = tmp_path_factory.mktemp("student"), {}, sample_grid.compared_grid_figure
    diversity = {"every_n_updates": 2, "num_samples": 20, "feature_cache": str(root / "kept")}
    watch = [
        {"class_path": "LastCheckpoint", "init_args": {"every_n_turns": 2}},
        {"class_path": "SampleGrid", "init_args": {"every_n_turns": 2, "num_samples": 3}},
        {"class_path": "DiversityCallback", "init_args": diversity},
    ]
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    arguments = {"teacher": str(teacher), "objective": "DiffInstruct", "turn": "fused", "sigma_init": 1.0}
    arguments |= {"noise_levels": {"class_path": "LogNormal", "init_args": {"mean": -0.5, "std": 1.0}}}
    arguments |= {"student_optimizer": sgd, "fake_score_optimizer": sgd}
    data = {"folder": str(encoded[0]), "held_out_fraction": 0.25, "batch_size": 4}
    config = write_yaml(
        root / "run.yaml",
        trainer={"max_steps": 2, "val_check_interval": 2, "callbacks": watch},
        model={"class_path": "DistillationModule", "init_args": arguments},
        data={"class_path": "LatentFolder", "init_args": data},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_grid, "compared_grid_figure", lambda rows, *to: drawn.update(rows) or draw(rows, *to))
        succeeds(
            "fit", "--config", CONFIGS / "trainer.yaml", "--config", tiny_trainer(root / "run"), "--config", config
        )
    return root, drawn


def test_pictures_are_what_the_vae_makes_of_the_latents(student, encoded):
    root, drawn = student
    assert [name.split("\n")[0] for name in drawn] == ["student", "teacher", "nearest"]
    assert {tuple(images.shape) for images in drawn.values()} == {(3, 3, 16, 16)}
    model = load_model(root / "run" / "checkpoints" / "last.ckpt")
    latents = model.sample(model.noise(3, 0), model.labels(3))
    training = LatentFolder(str(encoded[0]), held_out_fraction=0.25).train_samples
    for name, wanted in {"student": latents, "nearest": nearest_images(latents, training)[0]}.items():
        (found,) = (images for key, images in drawn.items() if key.startswith(name))
        torch.testing.assert_close(found, model.decode(wanted), rtol=0, atol=1e-4)


def test_a_run_measures_images_and_keeps_the_features_of_real_ones(student):
    root, _ = student
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("metric/frechet_distance" in line for line in lines)
    assert (
        len(list((root / "kept").iterdir())) == 4
    )  # the extractor, the reference, the training and the held-out split


@pytest.mark.slow
def test_a_report_compares_images(student, teacher):
    root, _ = student
    checkpoint = root / "run" / "checkpoints" / "last.ckpt"
    quick = {"class_path": "ClassifierFeatures", "init_args": {"epochs": 1}}
    features = write_yaml(root / "features.yaml", features=quick)
    options, reports = ["--features", features, "--n", 12, "--repeats", 1, "--bootstrap", 0], []
    for name, keep in {"one": [], "again": ["--feature_cache", root / "kept"]}.items():
        succeeds("evaluate", "--checkpoint", checkpoint, *options, *keep, "--out", root / name)
        reports.append(json.loads((root / name / "report.json").read_text()))
    one, again = ({**report, "seconds": 0, "samples_per_second": 0, "speedup": 0} for report in reports)
    assert one == again
    assert one["data"]["class_path"] == "fdistill.data.DecodedLatents"
    assert one["student"]["frechet_distance"] > 0


def test_a_teacher_trained_on_latents_knows_their_vae(encoded):
    module = teacher_training(DiffusersUNet(resolution=8, channels=4, widths=[8, 8], groups=4), num_steps=2)
    run = fit(module, 1, LatentFolder(str(encoded[0]), batch_size=4))
    model = module.generative_model()
    assert model.decoder.folder == encoded[0] / "vae"
    assert (model.sample_shape, model.image_shape) == ((4, 8, 8), (3, 16, 16))
    assert run.global_step == 1

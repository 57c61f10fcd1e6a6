"""Sources of samples: our models, diffusers pipelines and folders of pictures, and their evaluation on the digits."""

import json
import shutil

import numpy as np
import pytest
import torch
from cli_runs import fdistill, one_error_line, succeeds, write_yaml
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from PIL import Image

from fdistill.core.weight_files import CheckpointError
from fdistill.data import Digits
from fdistill.evaluation.evaluate import evaluate_models, samples_per_second
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.evaluation.sources import DiffusersSource, ImageFolderSource, ModelSource, open_source
from fdistill.io.export import export_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

pytestmark = pytest.mark.system  # seconds, too many for make check


def unet(channels=1, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            add_attention=False,
            **options,
        )


def dit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=4,
            patch_size=2,
            num_embeds_ada_norm=1000,  # the pipeline takes the class after them for "no class"
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=8,
        )
    return DiTPipeline(transformer, vae, DDIMScheduler())


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddpm") / "pipeline"
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consistency") / "pipeline"
    ConsistencyModelPipeline(unet(num_class_embeds=10), CMStochasticIterativeScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """100 training digits as PNG files in ten class folders; real samples, in other words."""
    folder, train = tmp_path_factory.mktemp("pictures"), Digits().train_samples.copied()
    for c in range(10):
        (folder / f"digit{c}").mkdir()
        for i, x in enumerate(train.x[train.classes == c][:10]):
            Image.fromarray(((x[0] + 1) * 127.5).round().byte().numpy()).save(folder / f"digit{c}" / f"{i}.png")
    return folder


@pytest.fixture
def quick_features(monkeypatch):
    monkeypatch.setattr("fdistill.evaluation.evaluate.default_extractor", lambda *_: ClassifierFeatures(epochs=5))


def model(num_classes=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GenerativeModel.student(Denoiser(MLP(width=8, depth=2, num_classes=num_classes), EDM(0.5)), 2.0)


@pytest.fixture(params=["model", "ddpm", "by_class", "pictures"])
def source(request, tmp_path):
    if request.param == "model":
        return open_source(export_folder(model(num_classes=3), tmp_path / "model"))
    return open_source(request.getfixturevalue(request.param), num_inference_steps=2)


def test_every_source_draws_what_it_announces(source):
    labels = source.labels(7, seed=3)
    x = source.draw(7, 3, labels)
    assert x.shape == (7, *source.sample_shape)
    assert (x.dtype, x.device.type) == (torch.float32, "cpu")
    assert x.isfinite().all()
    assert len(source.sample_shape) == 1 or x.abs().max() <= 1
    assert (labels is None) == (source.num_classes == 0)
    assert labels is None or ((labels >= 0) & (labels < source.num_classes)).all()
    json.dumps(source.facts)


def test_a_seed_decides_the_samples(source):
    state = torch.get_rng_state()
    assert torch.equal(source.draw(5, 1), source.draw(5, 1))
    assert not torch.equal(source.draw(5, 1), source.draw(5, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_draws_what_it_samples():
    wrapped = ModelSource(model(num_classes=3))
    labels = torch.tensor([2, 2, 0])
    wanted = wrapped.model.sample(wrapped.model.noise(3, 5), labels)
    assert torch.equal(wrapped.draw(3, 5, wrapped.labels(3, 5, labels)), wanted)
    assert wrapped.labels(5, 0).tolist() == [0, 1, 2, 0, 1]
    assert wrapped.evaluations == 1
    with pytest.raises(ValueError, match=r"lies in \[0, 3\): got 3"):
        wrapped.draw(1, 0, torch.tensor([3]))


def test_a_pipeline_draws_the_images_it_makes_by_itself(ddpm):
    pipeline = DDPMPipeline.from_pretrained(ddpm)
    images = pipeline(3, torch.Generator().manual_seed(5), num_inference_steps=4, output_type="np").images
    found = DiffusersSource(ddpm, num_inference_steps=4)
    np.testing.assert_allclose((found.draw(3, 5).permute(0, 2, 3, 1) + 1) / 2, images, rtol=0, atol=1e-6)
    assert (found.num_classes, found.labels(3, 0, torch.zeros(3))) == (0, None)
    assert found.facts == {"pipeline": "DDPMPipeline", "folder": str(ddpm), "num_inference_steps": 4}


def test_evaluations_are_those_of_the_network(ddpm, by_class, tmp_path):
    assert DiffusersSource(ddpm, num_inference_steps=3).evaluations == 3
    assert DiffusersSource(by_class).evaluations == 1  # the pipeline's own default
    dit().save_pretrained(tmp_path / "dit")
    guided = DiffusersSource(tmp_path / "dit", num_inference_steps=3)
    assert guided.evaluations == 6
    assert (guided.sample_shape, guided.num_classes) == ((3, 8, 8), 1000)


def test_a_conditional_pipeline_makes_the_classes_it_is_asked_for(by_class):
    found = DiffusersSource(by_class)
    wanted = torch.tensor([7, 1, 1, 4])
    pipeline = ConsistencyModelPipeline.from_pretrained(by_class)
    images = pipeline(4, [7, 1, 1, 4], generator=torch.Generator().manual_seed(2), output_type="np").images
    np.testing.assert_allclose((found.draw(4, 2, wanted).permute(0, 2, 3, 1) + 1) / 2, images, rtol=0, atol=1e-6)
    assert found.num_classes == 10
    assert torch.equal(found.draw(12, 2), found.draw(12, 2, torch.arange(12) % 10))
    with pytest.raises(ValueError, match=r"lies in \[0, 10\): got 10"):
        found.draw(1, 0, torch.tensor([10]))


def test_many_samples_are_made_in_batches(ddpm, monkeypatch):
    found = DiffusersSource(ddpm, num_inference_steps=1)
    sizes = []
    monkeypatch.setattr(found, "_run", lambda n, *_: sizes.append(n) or torch.zeros(n, 1, 8, 8))
    assert found.draw(150, 0).shape == (150, 1, 8, 8)
    assert sizes == [64, 64, 22]


def without_weights(folder):
    for file in folder.rglob("*.safetensors"):
        file.unlink()


def truncated(folder):
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])


def foreign(folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "NoPipeline", "_diffusers_version": "0.42.0"}))


def with_code(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "Mine"]}))
    (folder / "pipeline.py").write_text("raise SystemExit('this was executed')")


def no_json(folder):
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (without_weights, "diffusers cannot load"),
        (truncated, "diffusers cannot load"),
        (foreign, "diffusers cannot load"),
        (with_code, "diffusers cannot load"),
        (no_json, "is no readable JSON: expected the index of a diffusers pipeline"),
    ],
)
def test_broken_pipelines_give_one_line(spoil, match, ddpm, tmp_path):
    spoil(shutil.copytree(ddpm, tmp_path / "broken"))
    assert match in one_error_line(fdistill("evaluate", "--checkpoint", tmp_path / "broken"))
    with pytest.raises(CheckpointError, match=match):
        open_source(tmp_path / "broken")


def test_a_network_that_wants_classes_its_pipeline_does_not_take_is_refused(tmp_path):
    DDIMPipeline(unet(num_class_embeds=10), DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    with pytest.raises(CheckpointError, match="class_labels"):
        DiffusersSource(tmp_path / "ddim")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda self, prompt=None, generator=None: None, "got one that asks for prompt"),
        (lambda self, image, strength, generator=None: None, "got one that asks for image, strength"),
        (lambda self, batch_size=1, generator=None: None, "got one without"),
    ],
)
def test_pipelines_of_another_kind_are_refused(call, match, monkeypatch, tmp_path):
    kind = type("OtherPipeline", (), {"__call__": call, "to": lambda self, device: self})
    monkeypatch.setattr("fdistill.evaluation.sources._load_pipeline", lambda folder: kind())
    with pytest.raises(CheckpointError, match=rf"holds a OtherPipeline: expected .* {match}"):
        DiffusersSource(tmp_path)


def test_a_folder_is_drawn_without_replacement(pictures):
    found = ImageFolderSource(pictures)
    everything = {tuple(x.flatten().tolist()) for x in found.draw(100, seed=0)}
    assert everything == {tuple(x.flatten().tolist()) for x in found.draw(100, seed=1)}
    part = [tuple(x.flatten().tolist()) for x in found.draw(60, seed=3)]
    assert len(set(part)) == 60
    assert set(part) < everything
    with pytest.raises(ValueError, match="n <= 100"):
        found.draw(101, 0)


def test_pictures_keep_their_values_and_their_classes(pictures):
    found, train = ImageFolderSource(pictures), Digits().train_samples.copied()
    x, labels = found.draw(30, 4), found.labels(30, 4, wanted=torch.zeros(30))
    for image, label in zip(x, labels, strict=True):
        distance = (train.x - image).abs().amax((1, 2, 3))
        assert distance.min() < 1 / 127
        assert train.classes[distance.argmin()] == label
    assert (found.num_classes, found.sample_shape, found.evaluations) == (10, (1, 8, 8), None)
    assert torch.equal(found.draw(30, 4, labels), x)
    with pytest.raises(ValueError, match="classes"):
        found.draw(30, 4, (labels + 1) % 10)


def test_pictures_are_cropped_and_resized_as_training_images_are(tmp_path):
    from fdistill.data.image_files import read_image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    for name in ("a.png", "b.PNG"):
        Image.fromarray(pixels).save(tmp_path / name, format="png")
    assert ImageFolderSource(tmp_path).sample_shape == (3, 9, 9)
    found = ImageFolderSource(tmp_path, (1, 6, 6))
    wanted = read_image(tmp_path / "a.png", 6, 1).float() / 127.5 - 1
    assert torch.equal(found.draw(2, 0), torch.stack([wanted, wanted]))
    assert (found.num_classes, found.labels(2, 0)) == (0, None)
    for shape in ((2,), (3, 8, 4), (2, 8, 8)):
        with pytest.raises(ValueError, match="channels"):
            ImageFolderSource(tmp_path, shape)


def test_what_lies_at_a_path_decides_the_source(ddpm, by_class, pictures, tmp_path):
    kinds = {ddpm: DiffusersSource, by_class: DiffusersSource, pictures: ImageFolderSource}
    assert {path: type(open_source(path)) for path in kinds} == kinds
    assert type(open_source(export_folder(model(), tmp_path / "own"))) is ModelSource


def test_anything_else_is_told_in_one_line(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("words")
    with pytest.raises(CheckpointError, match="file"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="images"):
        open_source(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        open_source(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="truncated"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(CheckpointError, match="num_inference_steps"):
        DiffusersSource(tmp_path, num_inference_steps=0)


def test_a_pipeline_is_evaluated_beside_real_pictures(ddpm, pictures, quick_features):
    student, teacher = DiffusersSource(ddpm, num_inference_steps=2), ImageFolderSource(pictures)
    report = evaluate_models(student, teacher, Digits(), 40, seed=0, repeats=2).report
    assert report["teacher"]["frechet_distance"] < report["student"]["frechet_distance"] / 2
    assert report["teacher"]["accuracy"] > 0.8
    assert report["student"]["accuracy"] is None
    assert (report["student_evaluations"], report["teacher_evaluations"], report["speedup"]) == (2, None, None)
    assert list(report["samples_per_second"]) == ["student"]
    assert report["teacher_facts"] == {"folder": str(pictures), "images": 100}


def test_more_samples_than_pictures_are_refused(pictures, quick_features):
    with pytest.raises(ValueError, match="n <= 100"):
        evaluate_models(ImageFolderSource(pictures), None, Digits(), 101, seed=0, repeats=1)


def test_speed_is_measured_on_what_generates(by_class):
    assert samples_per_second(DiffusersSource(by_class), 3, repeats=1) > 0


def test_command_evaluates_a_pipeline_and_a_folder(ddpm, pictures, quick_features, tmp_path):
    data = write_yaml(tmp_path / "data.yaml", data={"class_path": "Digits"})
    arguments = ["--data", data, "--n", 20, "--repeats", 1, "--bootstrap", 0, "--out", tmp_path / "out"]
    succeeds("evaluate", "--checkpoint", ddpm, "--teacher", pictures, "--steps", 3, *arguments)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["n"], report["student_evaluations"], report["teacher_evaluations"]) == (20, 3, None)
    assert report["student_facts"]["num_inference_steps"] == 3
    assert (tmp_path / "out" / "index.html").is_file()


def test_command_converts_pictures_to_the_data(quick_features, tmp_path):
    (tmp_path / "big").mkdir()
    for i, x in enumerate(Digits().train_samples.copied().x[:20]):
        pixels = ((x[0] + 1) * 127.5).byte().numpy()
        Image.fromarray(pixels).resize((32, 32)).convert("RGB").save(tmp_path / "big" / f"{i}.png")
    data = write_yaml(tmp_path / "data.yaml", data={"class_path": "Digits"})
    arguments = ["--data", data, "--n", 20, "--repeats", 1, "--out", tmp_path / "out"]
    succeeds("evaluate", "--checkpoint", tmp_path / "big", *arguments)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["student"]["accuracy"] is None
    assert report["student"]["class_entropy"] > 0.5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "this model does not say what data it was trained on: give --data FILE.yaml"),
        (["--steps", 3], "this model does not say what data it was trained on"),
        (["--data", "digits.yaml", "--steps", 3], "steps are those of a diffusers pipeline: got 3 and no pipeline"),
        (["--data", "ring.yaml"], "compared with square images of 1 or 3 channels: got samples of shape (2,)"),
    ],
)
def test_command_tells_what_a_folder_lacks(flags, words, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "digits.yaml", data={"class_path": "Digits"})
    write_yaml(tmp_path / "ring.yaml", data={"class_path": "GaussianMixtureData"})
    assert words in one_error_line(fdistill("evaluate", "--checkpoint", pictures, *flags, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()

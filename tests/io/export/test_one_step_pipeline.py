"""OneStepPipeline: students of our own networks behave like a diffusers pipeline, and diffusers itself loads them."""

import numpy as np
import pytest
import torch
from stock_models import SMALL_UNET, vae

from fdistill.io.export import export_folder
from fdistill.io.export.pipeline import OneStepPipeline
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, DiffusersUNet, EDM2UNet, SmallUNet, SongUNet, StockUNet
from fdistill.models.vae import Decoder
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import DDPMPath
from fdistill.theory.preconditioning import EDM, EpsPrediction

pytestmark = pytest.mark.system  # seconds, too many for make check

NETWORKS = {
    "vectors": lambda: MLP(dim=3, width=8, depth=2),
    "vectors of classes": lambda: MLP(dim=2, width=8, depth=2, num_classes=4),
    "grey images": lambda: SmallUNet(widths=[8, 16], num_classes=3),
    "colour images": lambda: SmallUNet(channels=3, widths=[8, 16]),
}


def student(network):
    torch.manual_seed(0)
    return GenerativeModel.student(Denoiser(NETWORKS[network](), EDM(0.5)), 3.0, {"seed": 2, "divergence": "any"})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("network", NETWORKS)
def test_saving_and_loading_changes_no_sample(network, tmp_path):
    model = student(network)
    OneStepPipeline(model).save_pretrained(tmp_path / "first")
    OneStepPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    loaded = OneStepPipeline.from_pretrained(tmp_path / "second")
    assert loaded.model.facts == model.facts
    labels = list(range(model.num_classes)) or None
    n = len(labels or range(5))
    samples = loaded(n, class_labels=labels, generator=seeded(), output_type="pt").images
    expected = model.sample(model.noise(n, 0), model.labels(n))
    torch.testing.assert_close(samples, expected, rtol=0, atol=0)


def test_diffusers_loads_it_by_the_folder_alone(stock_process, tmp_path):
    for name in ("grey images", "vectors"):
        export_folder(student(name), tmp_path / name)
    code = (
        "import sys, torch\nfrom diffusers import DiffusionPipeline\n"
        "for folder in sys.argv[1:]:\n"
        "    p = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, low_cpu_mem_usage=False)\n"
        "    x = p(2, class_labels=1, generator=torch.Generator().manual_seed(0), output_type='pt').images\n"
        "    print(type(p).__name__, *x.shape, f'{x.double().sum():.6f}')\n"
    )
    folders = [tmp_path / name for name in ("grey images", "vectors")]
    lines = stock_process(code, *folders).out.splitlines()
    for line, name in zip(lines, ("grey images", "vectors"), strict=True):
        model = student(name)
        labels = torch.ones(2, dtype=torch.long) if model.num_classes else None
        expected = model.sample(model.noise(2, 0), labels)
        assert line == f"OneStepPipeline {' '.join(map(str, expected.shape))} {expected.double().sum():.6f}"


def test_random_classes_come_from_the_generator_and_are_real_ones():
    pipeline = OneStepPipeline(student("grey images"))
    first, second = (pipeline(50, generator=seeded(4), output_type="pt").images for _ in range(2))
    assert torch.equal(first, second)
    labels = pipeline._condition(None, 1000, seeded())
    assert labels.unique().tolist() == [0, 1, 2]


def test_output_types_hold_the_same_images():
    pipeline = OneStepPipeline(student("colour images"))
    raw, array, pictures = (pipeline(2, generator=seeded(), output_type=kind).images for kind in ("pt", "np", "pil"))
    np.testing.assert_allclose(array, (raw / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), atol=1e-7)
    np.testing.assert_array_equal(np.array(pictures[0]), np.round(array[0] * 255).astype(np.uint8))
    assert (pictures[0].size, pictures[0].mode) == ((8, 8), "RGB")
    assert pipeline(1, return_dict=False, generator=seeded())[0][0].size == (8, 8)


def test_given_latents_are_used():
    pipeline = OneStepPipeline(student("grey images"))
    drawn = pipeline(2, class_labels=0, generator=seeded(), output_type="pt").images
    given = pipeline(2, class_labels=0, latents=torch.randn(2, 1, 8, 8, generator=seeded()), output_type="pt").images
    assert torch.equal(drawn, given)


@pytest.mark.parametrize(
    ("network", "arguments", "words"),
    [
        ("grey images", {"num_inference_steps": 2}, "num_inference_steps"),
        ("grey images", {"output_type": "jpeg"}, "jpeg"),
        ("grey images", {"class_labels": 3}, "label"),
        ("grey images", {"class_labels": [0]}, "samples"),
        ("grey images", {"latents": torch.zeros(1, 1, 8, 8)}, r"expected \(2, 1, 8, 8\), got \(1, 1, 8, 8\)"),
        ("vectors", {"output_type": "pil"}, "images"),
    ],
)
def test_bad_arguments(network, arguments, words):
    with pytest.raises(ValueError, match=words):
        OneStepPipeline(student(network))(2, **arguments)


def latent_student(folder):
    """A stock UNet2DModel on a path of timesteps, with a VAE."""
    vae().save_pretrained(folder)
    network = StockUNet(SMALL_UNET | {"in_channels": 4, "out_channels": 4})
    model = GenerativeModel.student(Denoiser(network, EpsPrediction(DDPMPath(), 999.0)), [14.6, 1.0])
    model.decoder = Decoder(folder)
    return model


ROUNDED = {
    "small": lambda: SmallUNet(channels=3, widths=[8, 16]),
    "vectors": lambda: MLP(dim=3, width=8, depth=2),
    "waves": lambda: MLP(dim=3, width=8, depth=2, frequencies=4),
    "song": lambda: SongUNet(8, 3, 0, 8, (1,), blocks_per_level=1, attention_resolutions=()),
    "diffusers": lambda: DiffusersUNet(8, 3, (8, 16)),
    "edm2": lambda: EDM2UNet(8, 3, 0, 8, (1,), blocks_per_level=1, attention_resolutions=(), channels_per_head=8),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*ROUNDED, "latents"])
def test_in_half_precision_images_are_as_exact_as_it_is(name, dtype, tmp_path):
    torch.manual_seed(0)
    model = latent_student(tmp_path) if name == "latents" else student_of(ROUNDED[name]())
    pipeline = OneStepPipeline(model)
    exact = pipeline(4, generator=seeded(), output_type="pt").images
    assert pipeline.to(dtype) is pipeline
    assert pipeline.dtype == pipeline.model.dtype == dtype
    rounded = pipeline(4, generator=seeded(), output_type="pt").images
    assert rounded.dtype == torch.float32
    error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 16 * torch.finfo(dtype).eps


def student_of(network):
    return GenerativeModel.student(Denoiser(network, EDM(0.5)), 3.0, {"seed": 2})


def test_the_student_is_a_component_like_any_other(tmp_path):
    model = latent_student(tmp_path)
    pipeline = OneStepPipeline(model)
    assert list(pipeline.components) == ["model"]
    assert isinstance(pipeline.components["model"], torch.nn.Module)
    weights = {p.data_ptr() for p in pipeline.components["model"].parameters()}
    inside = [*model.denoiser.parameters(), *model.decoder.vae.parameters()]
    assert weights == {p.data_ptr() for p in inside}
    assert pipeline.device == torch.device("cpu")
    other = OneStepPipeline(**pipeline.components)
    images, again = (p(2, generator=seeded(), output_type="pt").images for p in (pipeline, other))
    assert torch.equal(images, again)
    assert torch.equal(images, model.decode(model.sample(model.noise(2, 0))))
    assert pipeline.to("meta").device.type == "meta"
    assert all(p.is_meta for p in pipeline.model.parameters())


def test_a_type_may_be_asked_for_while_loading(tmp_path):
    OneStepPipeline(student("grey images")).save_pretrained(tmp_path / "student")
    loaded = OneStepPipeline.from_pretrained(tmp_path / "student", torch_dtype=torch.bfloat16)
    rounded = OneStepPipeline(student("grey images")).to(torch.bfloat16)
    labels = {"class_labels": [0, 1], "output_type": "pt"}
    pair = [pipeline(2, generator=seeded(), **labels).images for pipeline in (loaded, rounded)]
    assert torch.equal(*pair)


def test_weights_are_read_only_while_the_component_runs(tmp_path):
    """What offloading asks for: it brings the weights before a component's forward pass, and takes them away."""
    pipeline = OneStepPipeline(latent_student(tmp_path))
    expected = pipeline(2, generator=seeded(), output_type="pt").images
    component, own = pipeline.model, list(pipeline.model.parameters())
    kept = [p.detach().clone() for p in own]

    def fill(values):
        for parameter, value in zip(own, values, strict=True):
            parameter.data.copy_(value)

    away = [torch.full_like(p, torch.nan) for p in own]
    component.register_forward_pre_hook(lambda *_: fill(kept))
    component.register_forward_hook(lambda *_: fill(away))
    fill(away)
    assert torch.equal(pipeline(2, generator=seeded(), output_type="pt").images, expected)
    assert own[0].isnan().all()


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_changes_no_pixel(way, tmp_path):
    pytest.importorskip("accelerate", reason="diffusers offloads by accelerate")
    pipeline = OneStepPipeline(latent_student(tmp_path))
    expected = pipeline(2, generator=seeded(), output_type="pt").images
    getattr(pipeline, way)(device="cpu")
    for _ in range(2):
        assert torch.equal(pipeline(2, generator=seeded(), output_type="pt").images, expected)


def test_a_teacher_is_refused():
    model = GenerativeModel.teacher(Denoiser(MLP(width=8, depth=2), EDM(0.5)), 3, 0.1, 9.0)
    with pytest.raises(ValueError, match="runs"):
        OneStepPipeline(model)


def test_the_models_card_shows_code_that_runs(tmp_path, monkeypatch):
    folder = export_folder(student("vectors of classes"), tmp_path / "vectors")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["samples"].shape == (16, 2)

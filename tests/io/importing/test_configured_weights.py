"""A .safetensors file and a YAML file that says what it holds make the denoiser that was saved."""

import pytest
import torch
import yaml
from safetensors.torch import save_file
from stock_models import save, vae

from fdistill.io.importing import Options, import_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.sampling import GDDIM, Euler
from fdistill.theory.paths import VPLinear
from fdistill.theory.preconditioning import EDM, EpsPrediction

NETWORK = {"class_path": "SmallUNet", "init_args": {"resolution": 8, "widths": [8, 8], "num_classes": 2}}


def small(preconditioning=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(SmallUNet(8, 1, (8, 8), num_classes=2), preconditioning or EDM(0.4)).eval()


def written(folder, content, tensors=None):
    """The two files, as import_model takes them."""
    folder.mkdir(exist_ok=True)
    weights = (tensors or small().state_dict()).items()
    save_file({name: value.contiguous() for name, value in weights}, folder / "weights.safetensors")
    (folder / "model.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return folder / "weights.safetensors", folder / "model.yaml"


def read(files, **options):
    return import_model(files[0], Options(config=files[1], **options))


EDM_SECTION = {"network": NETWORK, "preconditioning": {"class_path": "EDM", "init_args": {"sigma_data": 0.4}}}


@pytest.mark.parametrize(
    "content",
    [
        {"denoiser": EDM_SECTION},
        {"denoiser": {"class_path": "Denoiser", "init_args": EDM_SECTION}},
        {"model": {"class_path": "fdistill.training.TeacherModule", "init_args": EDM_SECTION | {"seed": 3}}},
        {"model": EDM_SECTION | {"network": NETWORK | {"class_path": "fdistill.models.networks.SmallUNet"}}},
    ],
    ids=["denoiser", "class path", "a run", "full names"],
)
@pytest.mark.parametrize("whole", [True, False], ids=["denoiser", "network"])
def test_the_denoiser_comes_back(content, whole, tmp_path):
    denoiser = small()
    model = read(written(tmp_path, content, (denoiser if whole else denoiser.network).state_dict()))
    x, sigma, labels = model.noise(3, 0), torch.tensor([0.1, 1.0, 20.0]), torch.tensor([0, 1, 2])
    assert torch.equal(model.denoiser(x, sigma, labels), denoiser(x, sigma, labels))
    assert (len(model.sigmas), float(model.sigmas[0]), model.guidance) == (19, 80.0, 1.0)


def test_nested_classes_need_no_full_names_and_no_arguments(tmp_path):
    how = {"class_path": "EpsPrediction", "init_args": {"path": {"class_path": "VPLinear"}, "time_scale": 999.0}}
    model = read(written(tmp_path, {"denoiser": {"network": NETWORK, "preconditioning": how}}))
    assert model.denoiser.preconditioning.spec() == EpsPrediction(VPLinear(), 999.0).spec()


def test_sampling_is_that_of_the_file_unless_an_option_says_otherwise(tmp_path):
    content = {"denoiser": EDM_SECTION, "sampling": {"num_steps": 3, "sigma_max": 10.0, "guidance": 2.0}}
    files = written(tmp_path, content)
    model = read(files)
    assert (round(model.sigmas.tolist()[0], 9), len(model.sigmas), model.guidance) == (10.0, 4, 2.0)
    model = read(files, num_steps=5, guidance=1.0, sigma_data=0.7)
    assert (len(model.sigmas), model.guidance, model.facts["sigma_data"]) == (6, 1.0, 0.7)


def test_a_run_tells_its_own_sampling(tmp_path):
    model = read(written(tmp_path, {"model": {"init_args": EDM_SECTION | {"num_steps": 4, "sigma_min": 0.01}}}))
    assert model.sigmas[-2:].tolist() == pytest.approx([0.01, 0.0])


def test_a_bare_name_is_a_class_wherever_one_is_asked_for(tmp_path):
    how = {"class_path": "EpsPrediction", "init_args": {"path": "VPLinear"}}
    section = {"network": NETWORK, "preconditioning": how, "sampler": "Euler"}
    model = read(written(tmp_path, {"model": section}))
    assert model.denoiser.preconditioning.spec() == EpsPrediction(VPLinear()).spec()
    assert type(model.sampler) is Euler
    assert model.sample(model.noise(2, 0), torch.tensor([0, 1])).isfinite().all()


def test_a_runs_own_sampler_and_grid_and_data_are_kept(tmp_path):
    how = {"sampler": {"class_path": "GDDIM", "init_args": {"eta": 1.0}}, "sigma_data": 0.4}
    how["grid"] = {"class_path": "KarrasGrid", "init_args": {"num_steps": 5, "sigma_max": 20.0}}
    files = written(tmp_path, {"model": {"init_args": EDM_SECTION | how | {"num_steps": 7}}})
    model = read(files)
    assert model.sampler.spec() == GDDIM(1.0).spec()
    assert (len(model.sigmas), round(float(model.sigmas[0]), 9), model.facts["sigma_data"]) == (6, 20.0, 0.4)
    assert len(read(files, num_steps=3).sigmas) == 4


def test_an_option_of_zero_is_one(tmp_path):
    files = written(tmp_path, {"denoiser": EDM_SECTION, "sampling": {"guidance": 2.0}})
    assert read(files, guidance=0.0).guidance == 0.0


def test_latents_have_the_vae_that_is_named(tmp_path):
    network = {"class_path": "SmallUNet", "init_args": {"resolution": 8, "channels": 4, "widths": [8, 8]}}
    weights = SmallUNet(8, 4, (8, 8)).state_dict()
    files = written(tmp_path / "model", {"denoiser": EDM_SECTION | {"network": network}}, weights)
    assert read(files, vae=save(vae(), tmp_path / "vae")).image_shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "denoiser"),
        ("denoiser: 3", "denoiser"),
        ("{", "YAML"),
        ({"denoiser": {"network": NETWORK}}, "denoiser"),
        ({"denoiser": EDM_SECTION | {"network": {"class_path": "os.system"}}}, "Network"),
        ({"denoiser": EDM_SECTION | {"preconditioning": NETWORK}}, "Preconditioning"),
        ({"denoiser": EDM_SECTION | {"network": {"class_path": "SmallUNet", "init_args": {"a": 1}}}}, "does not take"),
        ({"denoiser": EDM_SECTION, "sampling": {"steps": 3}}, "sigma_max"),
        ({"denoiser": EDM_SECTION, "sampling": {"num_steps": 0}}, "integer"),
        ({"denoiser": EDM_SECTION | {"network": {"class_path": "SmallUNet"}}}, "tensors"),
    ],
)
def test_a_configuration_that_describes_nothing(content, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        read(written(tmp_path, content))
    assert "\n" not in str(error.value)


def test_tensors_alone_say_nothing(tmp_path):
    file, config = written(tmp_path, {"denoiser": EDM_SECTION})
    with pytest.raises(ValueError, match="FILE"):
        import_model(file)
    config.unlink()
    with pytest.raises(ValueError, match="model"):
        import_model(file, Options(config=config))

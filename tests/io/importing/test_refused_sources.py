"""What cannot be imported is refused in one line: what was found, what is supported, what to do."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline
from safetensors.torch import load_file, save_file
from stock_models import ddim, dit, save, unet, vae

from fdistill.core.weight_files import CheckpointError
from fdistill.io.importing import Options, import_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


def refusal(source, **options):
    with pytest.raises(ValueError, match=r"\w") as error:
        import_model(source, Options(**options))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def pipeline(tmp_path):
    return save(DDPMPipeline(unet(num_class_embeds=3), DDPMScheduler()), tmp_path / "pipeline")


def rewrite(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]},
            "has no text_encoder, which its prompts or pictures need",
        ),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "with controlnet: expected"),
        ({"transformer": ["diffusers", "DiTTransformer2DModel"]}, "one of scheduler, transformer, unet: expected"),
        ({"unet": [None, None]}, "with one of scheduler: expected"),
        ({"scheduler": [None, None]}, "with one of unet: expected"),
        ({"scheduler": ["diffusers", "CMStochasticIterativeScheduler"]}, "a student already: fdistill sample and eval"),
    ],
)
def test_a_pipeline_that_asks_for_more_than_classes(index, words, pipeline):
    rewrite(pipeline / "model_index.json", **index)
    assert words in refusal(pipeline)


def test_a_part_that_a_pipeline_may_lack_and_does_lack_is_no_matter(pipeline):
    rewrite(pipeline / "model_index.json", feature_extractor=[None, None], id2label={"0": "tench"})
    assert import_model(pipeline).num_classes == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel: expected an unconditional or class-"),
        ({"_class_name": "UNet3DConditionModel"}, "holds a UNet3DConditionModel"),
        ({"_class_name": ...}, "holds a None"),
        ({"_class_name": "Transformer2DModel", "norm_type": "layer_norm"}, "holds a Transformer2DModel"),
        ({"time_embedding_type": "fourier"}, "reads noise levels, and schedulers give timesteps"),
        ({"sample_size": None}, "unet: a UNet2DModel of samples of one shape"),
        ({"block_out_channels": [8, 24]}, r"another architecture \("),
    ],
)
def test_a_network_that_is_not_known(config, words, pipeline):
    rewrite(pipeline / "unet" / "config.json", **config)
    assert words.replace("\\", "") in refusal(pipeline)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "is of a ScoreSdeVeScheduler: expected one of discrete betas (DDPM"),
        (
            {"_class_name": "UNet2DModel"},
            "names no scheduler of diffusers: expected _class_name like DDPMScheduler, got",
        ),
        ({"_class_name": "os.system"}, "names no scheduler of diffusers"),
        ({"_class_name": ...}, "got None"),
        ({"rescale_betas_zero_snr": True}, "no signal at the last timestep"),
        ({"prediction_type": "flux"}, "prediction_type is one of epsilon, v_prediction, sample, got 'flux'"),
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule is one of linear, scaled_linear, squaredcos_cap_v2: got 'sigmoid'",
        ),
        ({"beta_end": "large"}, "scheduler_config.json: "),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "is of a EulerDiscreteScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "its shift is positive"),
    ],
)
def test_a_scheduler_that_is_no_path(config, words, pipeline):
    rewrite(pipeline / "scheduler" / "scheduler_config.json", **config)
    assert words in refusal(pipeline)


@pytest.mark.parametrize(
    ("config", "prediction", "time_scale"),
    [
        ({"prediction_type": ...}, "EpsPrediction", 999.0),
        ({"predict_epsilon": False, "prediction_type": ...}, "X0Prediction", 999.0),
        ({"_class_name": "PNDMScheduler", "beta_start": 0.0002}, "EpsPrediction", 999.0),
        (
            {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True},
            "VelocityPrediction",
            1000.0,
        ),
    ],
)
def test_what_a_scheduler_leaves_out_is_what_its_class_assumes(config, prediction, time_scale, pipeline):
    rewrite(pipeline / "scheduler" / "scheduler_config.json", **config)
    how = import_model(pipeline).denoiser.preconditioning
    assert (type(how).__name__, how.time_scale) == (prediction, time_scale)


def test_a_network_without_a_scheduler_says_how_to_name_one(pipeline):
    (pipeline / "scheduler" / "scheduler_config.json").unlink()
    assert "expected the scheduler of this network (--scheduler FILE names another)" in refusal(pipeline / "unet")


def test_tensors_that_do_not_fit_are_named_and_counted(pipeline):
    weights = load_file(pipeline / "unet" / WEIGHTS)
    weights |= {"conv_in.weight": torch.zeros(1), "conv_in.stray": torch.zeros(1)}
    del weights["conv_in.bias"]
    save_file(weights, pipeline / "unet" / WEIGHTS)
    assert refusal(pipeline).endswith(
        "(3 tensors differ): unet.conv_in.bias missing; unet.conv_in.stray unexpected; "
        "unet.conv_in.weight expected (8, 3, 3, 3), got (1,)"
    )


def test_pickled_weights_are_read_as_tensors_or_not_at_all(pipeline):
    (pipeline / "unet" / WEIGHTS).unlink()
    assert "holds no weights" in refusal(pipeline)
    file = pipeline / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"state": print}, file)
    assert "never executed: convert it to safetensors" in refusal(pipeline)
    torch.save(unet(num_class_embeds=3).state_dict(), file)
    assert import_model(pipeline).num_classes == 3


def test_guidance_needs_a_class_and_its_absence(pipeline, tmp_path):
    assert 'compares with "no class", and' in refusal(pipeline, guidance=2.0)
    assert import_model(pipeline, Options(guidance=1.0)).guidance == 1.0
    plain = save(DDPMPipeline(unet(), DDPMScheduler()), tmp_path / "plain")
    assert "has no classes: leave --guidance out" in refusal(plain, guidance=0.0)


def test_a_teacher_without_no_class_cannot_be_guided_later(pipeline):
    denoiser = import_model(pipeline).denoiser
    with pytest.raises(ValueError, match="guidance"):
        denoiser.null(1)


def test_options_that_a_source_has_no_use_for(pipeline, tmp_path):
    file = pipeline / "scheduler" / "scheduler_config.json"
    assert "a pipeline, which has no use for scheduler: leave --scheduler out" in refusal(pipeline, scheduler=file)
    assert "no use for config" in refusal(pipeline / "unet", config=file)
    (tmp_path / "x.safetensors").touch()
    assert "no use for last_class_is_none" in refusal(tmp_path / "x.safetensors", last_class_is_none=True)
    (tmp_path / "x.pkl").touch()
    assert "no use for sigma_data" in refusal(tmp_path / "x.pkl", sigma_data=0.5)
    assert "leave --last_class_is_none out" in refusal(
        save(DiTPipeline(dit(), vae(), ddim()), tmp_path / "dit"), last_class_is_none=True
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps is a number of sampling steps and positive, at most 10,000: got 0"),
        ({"guidance": float("nan")}, "guidance is a finite scale: got nan"),
        ({"sigma_data": 0.0}, "sigma_data is a standard deviation, finite and positive: got 0.0"),
        ({"sigma_data": float("inf")}, "got inf"),
    ],
)
def test_numbers_outside_their_range(options, words, pipeline):
    assert words in refusal(pipeline, **options)


def test_files_and_folders_that_hold_no_model(tmp_path):
    assert "nothing is downloaded" in refusal(tmp_path / "gone")
    assert "got an empty folder" in refusal(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "got ['notes.txt']" in refusal(tmp_path)
    assert "got a .txt" in refusal(tmp_path / "notes.txt")
    (tmp_path / "model.pth").touch()
    assert "could run anything: convert it to safetensors where you trust it" in refusal(tmp_path / "model.pth")
    (tmp_path / "fdistill.json").touch()
    assert "use it as it is" in refusal(tmp_path)


def test_a_broken_index_is_no_pipeline(pipeline):
    (pipeline / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        import_model(pipeline)

"""An imported text-to-image teacher is the stock pipeline: its denoised latents, its samples, its pictures."""

import contextlib
import dataclasses
import json
import shutil

import diffusers
import pytest
import torch
from cases import slow_but
from safetensors.torch import save_file
from text_pipelines import PIPELINES, built, side_of
from torch.testing import assert_close

from fdistill.io.export import export_folder
from fdistill.io.importing import Options, import_model
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import StockPipeline
from fdistill.models.condition import Condition
from fdistill.models.guidance import Guidance
from fdistill.theory.paths import DDPMPath

pytestmark = pytest.mark.system  # seconds, too many for make check

PROMPTS = ["a red seven", "a blue ground"]
NEGATIVE = "ugly"
STEPS = 4  # which divides 1000: DDIM of diffusers steps to other timesteps than it evaluates where it does not
STEPPED = [name for name in PIPELINES if name not in ("sana", "sana-sprint")] + ["sana-euler"]
"""All whose pipeline follows the flow by first-order steps; one of Sana with another scheduler than its own."""

GUIDED = {  # at which argument of a pipeline the guided denoiser is D_null + 5 (D - D_null)
    "flux": {"true_cfg_scale": 5.0},
    "z-image": {"guidance_scale": 4.0},
    "qwen-image": {"true_cfg_scale": 5.0, "negative_prompt": [""] * 2},
}
UNGUIDED = {"flux": {}, "flux-schnell": {}, "qwen-image": {}, "z-image": {"guidance_scale": 0.0}}


def imported(folder, name, **options):
    return import_model(folder, Options(resolution=(side_of(name),), **options))


def stock_latents(pipeline, model, noise, **arguments):
    """The pipeline's latents [B, C, h, w] from our noise."""
    name, family = type(pipeline).__name__, model.denoiser.network.family
    packed = hasattr(family, "packed") and name != "Flux2KleinPipeline"
    side = [length * model.denoiser.network.image_factor for length in model.sample_shape[1:]]
    if name in ("SanaPipeline", "SanaSprintPipeline", "PixArtSigmaPipeline"):
        arguments["use_resolution_binning"] = False
    with torch.no_grad():
        latents = pipeline(
            prompt=PROMPTS,
            height=side[0],
            width=side[1],
            latents=family.packed(noise) if packed else noise,
            output_type="latent",
            **arguments,
        ).images
    if name == "Flux2KleinPipeline":  # it undoes the normalisation and the packing
        factor, shift = model.decoder.scale
        latents = (torch.nn.functional.pixel_unshuffle(latents, 2) - shift) * factor
    return family.prediction(latents) if packed else latents


def difference(ours, theirs):
    """The largest one, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    "name", slow_but(STEPPED, "sd", "sd3", "sana-euler", "flux-schnell", "lumina2", "pixart", "flux2")
)
def test_samples_are_those_of_the_pipeline(name, folders):
    folder, pipeline = folders(name)
    model = imported(folder, name, num_steps=STEPS)
    asked = StockPipeline(folder).ask(PROMPTS, (side_of(name),) * 2, null=False)
    noise = model.noise(2, seed=1)
    theirs = stock_latents(
        pipeline, model, noise, num_inference_steps=STEPS, **UNGUIDED.get(name, {"guidance_scale": 1.0})
    )
    assert difference(model.sample(noise, asked.condition), theirs) < 1e-5


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "flux2", "qwen-image", "sana"])
def test_pictures_are_those_of_the_vae(name, folders):
    folder, pipeline = folders(name)
    model = imported(folder, name, num_steps=STEPS)
    latents = model.noise(1, seed=2)
    vae, config = pipeline.vae, pipeline.vae.config
    raw = latents / config.get("scaling_factor", 1.0) + (config.get("shift_factor") or 0.0)
    if name == "qwen-image":
        std, mean = (torch.tensor(config[key])[:, None, None] for key in ("latents_std", "latents_mean"))
        raw = (latents * std + mean)[:, :, None]
    if name == "flux2":  # its statistics are those of no batch: mean 0, variance 1
        raw = pipeline._unpatchify_latents(latents * (1 + config.batch_norm_eps) ** 0.5)
    with torch.no_grad():
        images = vae.decode(raw).sample
    assert_close(model.decode(latents), images.reshape(model.decode(latents).shape).clamp(-1, 1))


@pytest.mark.parametrize(
    "name",
    slow_but([name for name in STEPPED if name != "flux-schnell"], "sd-v", "sdxl", "flux", "qwen-image", "z-image"),
)
def test_guided_samples_are_those_of_the_pipeline_with_its_own_and_with_a_negative_prompt(name, folders):
    folder, pipeline = folders(name)
    model = imported(folder, name, num_steps=STEPS, **({} if name == "flux" else {"guidance": 5.0}))
    stock = StockPipeline(folder)
    noise, told = model.noise(2, seed=3), GUIDED.get(name, {"guidance_scale": 5.0})
    negatives = [NEGATIVE] if name == "flux" else [None] if name == "flux2" else [None, NEGATIVE]
    for negative in negatives:
        asked = stock.ask(PROMPTS, (side_of(name),) * 2, negative=negative)
        if negative is not None:
            model.denoiser.network.set_null(asked.null.rows(slice(1)))
            model.guidance = dataclasses.replace(Guidance.of(model.guidance), scale=5.0)
            told = {**told, "negative_prompt": [negative] * 2}
        theirs = stock_latents(pipeline, model, noise, num_inference_steps=STEPS, **told)
        assert difference(model.sample(noise, asked.condition), theirs) < 1e-5


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sd-v", {"guidance_scale": 5.0, "guidance_rescale": 0.7}),
        ("sdxl", {"guidance_scale": 5.0, "guidance_rescale": 0.7}),
        ("z-image", {"guidance_scale": 4.0, "cfg_normalization": 0.7}),
    ],
)
def test_guidance_rescaled_by_a_share_is_the_pipelines(name, told, folders):
    folder, pipeline = folders(name)
    model = imported(folder, name, num_steps=STEPS, guidance=5.0, guidance_rescale=0.7)
    noise, condition = model.noise(2, seed=3), StockPipeline(folder).ask(PROMPTS, (16, 16)).condition
    theirs = stock_latents(pipeline, model, noise, num_inference_steps=STEPS, **told)
    samples = model.sample(noise, condition)
    assert difference(samples, theirs) < 1e-5
    model.guidance = 5.0
    assert difference(model.sample(noise, condition), samples) > 1e-3


def test_guidance_of_some_steps_is_the_pipelines_that_ends_early(folders):
    folder, pipeline = folders("lumina2")
    model = imported(folder, "lumina2", num_steps=STEPS, guidance=5.0)
    assert model.guidance == Guidance(5.0, rescale=1.0, norm="row")
    model.guidance = dataclasses.replace(model.guidance, sigma_low=float(model.sigmas[1:3].mean()))
    noise, condition = model.noise(2, seed=3), StockPipeline(folder).ask(PROMPTS, (64, 64)).condition
    told = {"guidance_scale": 5.0, "cfg_trunc_ratio": 0.5}
    theirs = stock_latents(pipeline, model, noise, num_inference_steps=STEPS, **told)
    assert difference(model.sample(noise, condition), theirs) < 1e-5
    assert model.evaluations == STEPS + 2


def denoised_by(scheduler, output, x_t, step):
    """x_0 as the scheduler takes it from the network's output."""
    if isinstance(scheduler, diffusers.SCMScheduler):
        return scheduler.step(output, scheduler.timesteps[step], x_t)[1]
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(scheduler.timesteps[step])
        return scheduler.convert_model_output(output, sample=x_t)
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        return x_t - scheduler.sigmas[step] * output
    return scheduler.step(output, scheduler.timesteps[step], x_t).pred_original_sample


@pytest.mark.parametrize("name", ["sd", "sd-v", "sd-zero-snr", "sdxl", "pixart", "sana", "sd3"])
@torch.no_grad()
def test_the_denoised_latents_are_the_schedulers_from_the_stock_networks_output(name, folders):
    folder, pipeline = folders(name)
    model = imported(folder, name, num_steps=STEPS)
    network, scheduler = getattr(pipeline, model.denoiser.network.family.part), pipeline.scheduler
    condition = StockPipeline(folder).ask(PROMPTS, (side_of(name),) * 2, null=False).condition
    scheduler.set_timesteps(6)
    path = model.denoiser.preconditioning.path
    for step, timestep in enumerate(scheduler.timesteps[:5]):
        if isinstance(path, DDPMPath):
            sigma = path.noise_ratio(timestep.double() / 999)
            alpha = 1 / (1 + sigma**2).sqrt()
        else:
            alpha = 1 - scheduler.sigmas[step].double()
            sigma = (scheduler.sigmas[step].double() / alpha).clamp_max(1e8)
        x_t = model.noise(2, seed=step)
        time = timestep.expand(2) if isinstance(path, DDPMPath) else 1000 * scheduler.sigmas[step].expand(2)
        output = model.denoiser.network.family(network, x_t, time, condition)
        ours = model.denoiser(x_t / alpha.clamp_min(1e-8).float(), sigma.float().expand(2), condition)
        assert difference(ours, denoised_by(scheduler, output, x_t, step)) < 1e-5


def test_one_step_of_sana_sprint_is_its_pipelines(folders):
    folder, pipeline = folders("sana-sprint")
    model = imported(folder, "sana-sprint", num_steps=1)
    condition = StockPipeline(folder).ask(PROMPTS, (32, 32)).condition
    noise = model.noise(2, seed=1)
    theirs = stock_latents(pipeline, model, noise, num_inference_steps=1, intermediate_timesteps=None)
    assert difference(model.sample(noise, condition), theirs) < 1e-5


def read_in(network, blocks, features, x, time, condition):
    """Features behind blocks, gradients of a number made of them, and the blocks that were evaluated."""
    network.read_features_at(blocks)
    known, called = network.family.blocks(network.stock), []
    hooks = [block.register_forward_hook(lambda block, *_: called.append(known.index(block))) for block in known]
    x = x.clone().requires_grad_()
    taps = features(network, x, time, condition)
    for hook in hooks:
        hook.remove()
    value = sum((tap * (1 + index) / 7).sin().sum() for index, tap in enumerate(taps))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return taps, torch.autograd.grad(value, [x, *weights], allow_unused=True), called


def alone(network, *given):
    return network.features(*given)


def beside_the_output(network, *given):
    return network.forward_with_features(*given)[0]


def without_its_graph(network, *given):
    encoding = network.encode_without_graph_behind(*given)
    assert torch.is_grad_enabled()
    assert not encoding.state.requires_grad
    with torch.no_grad():
        assert_close(encoding.state, network(*given), rtol=0, atol=0)
    return encoding.features


@pytest.mark.parametrize("name", slow_but(PIPELINES, "sd", "sdxl", "pixart", "sd3", "flux", "z-image"))
def test_features_of_chosen_blocks_stop_early_with_values_and_gradients_of_the_whole_pass(name, folders):
    folder, _ = folders(name)
    network = imported(folder, name, num_steps=1).denoiser.network
    given = torch.randn(2, *network.sample_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.7])
    given = *given, StockPipeline(folder).ask(PROMPTS, (side_of(name),) * 2, null=False).condition
    every = list(range(len(network.family.blocks(network.stock))))
    for blocks in ([0], every):
        early, its, called = read_in(network, blocks, alone, *given)
        assert called == list(range(blocks[-1] + 1))
        features, truth, whole = read_in(network, blocks, beside_the_output, *given)
        assert whole == every
        assert [tap.shape[:2] for tap in early] == [(2, channels) for channels in network.feature_channels]
        assert_close(early, features, rtol=0, atol=0)
        assert_close(its, truth, rtol=0, atol=0)
    network.checkpoint_gradients(lambda block: contextlib.nullcontext())
    for features in (alone, beside_the_output, without_its_graph):
        again, recomputed, _ = read_in(network, every, features, *given)
        assert_close(again, early, rtol=0, atol=0)
        assert_close(recomputed, truth, rtol=1e-5, atol=1e-6)


def test_numbers_of_no_blocks_are_refused(folders):
    network = imported(folders("sd3")[0], "sd3", num_steps=1).denoiser.network
    for blocks in ([], [2], [1, 0], [-1], [0, 0]):
        with pytest.raises(ValueError, match="feature_blocks"):
            network.read_features_at(blocks)


def test_features_of_samples_with_prompts_of_different_lengths_are_those_of_each_alone(folders):
    for name in ("lumina2", "z-image", "qwen-image"):
        folder, _ = folders(name)
        network = imported(folder, name, num_steps=1).denoiser.network
        stock, side = StockPipeline(folder), (side_of(name),) * 2
        prompts = ["a", "a much longer prompt"]
        x, time = (
            torch.randn(2, *network.sample_shape, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0.5] * 2),
        )
        both = stock.ask(prompts, side, null=False).condition
        with torch.no_grad():
            (features,), output = network.forward_with_features(x, time, both)
            for row, prompt in enumerate(prompts):
                alone = stock.ask([prompt], side, null=False).condition
                (its,), made = network.forward_with_features(x[row : row + 1], time[:1], alone)
                assert_close(made[0], output[row], rtol=0, atol=2e-6)
                assert_close(its[0], features[row], rtol=0, atol=2e-6)


def test_a_teacher_in_a_folder_is_the_same_again(folders, tmp_path):
    folder, _ = folders("sdxl")
    model = imported(folder, "sdxl", num_steps=2, guidance=3.0)
    again = load_model(export_folder(model, tmp_path / "teacher"))
    condition = StockPipeline(folder).ask(PROMPTS, (16, 16), null=False).condition
    noise = model.noise(2, seed=5)
    assert_close(again.sample(noise, condition), model.sample(noise, condition), rtol=0, atol=0)
    assert (again.start, again.facts["pipeline"]) == ("unit", str(folder))


def test_half_weights_in_shards_and_a_variant_are_read(folders, tmp_path):
    _, pipeline = folders("sd3")
    half = built("sd3")
    half.transformer.to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*-of-*"))) > 1
    network = imported(tmp_path, "sd3", num_steps=1).denoiser.network
    wanted = pipeline.transformer.state_dict()
    for name, value in network.stock.state_dict().items():
        assert_close(value, wanted[name].half().float(), rtol=0, atol=0)


def adapter(network, metadata=None, prefix="transformer.", rank=2):
    """The tensors of an adapter of two layers, and what they add to each."""
    generator, tensors, added = torch.Generator().manual_seed(0), {}, {}
    layers = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)][3:5]
    for name in layers:
        weight = network.get_submodule(name).weight
        down = torch.randn(rank, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], rank, generator=generator)
        tensors |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
        added[f"{name}.weight"] = up @ down
    return tensors, added


@pytest.mark.parametrize("alpha", [None, 6])
def test_an_adapter_is_merged_at_alpha_over_rank(alpha, folders, tmp_path):
    folder, pipeline = folders("sd3")
    tensors, added = adapter(pipeline.transformer)
    known = {} if alpha is None else {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": alpha})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"format": "pt", **known})
    network = imported(folder, "sd3", num_steps=1, lora=tmp_path / "lora.safetensors").denoiser.network
    before, scale = pipeline.transformer.state_dict(), 1.0 if alpha is None else alpha / 2
    for name, value in network.stock.state_dict().items():
        assert_close(value, before[name] + scale * added.get(name, 0.0))


def test_a_null_condition_is_what_a_pipeline_takes_for_no_prompt(folders):
    for name, zero in (("sd", False), ("sdxl", True)):
        folder, _ = folders(name)
        null = imported(folder, name, num_steps=1).denoiser.network.null(3)
        assert null.length == 3
        assert all((value == 0).all() for value in null.values()) == zero  # force_zeros_for_empty_prompt


def refusal(folder, **options):
    with pytest.raises(ValueError, match=r"\w") as error:
        import_model(folder, Options(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_input_is_refused_in_one_line(folders, tmp_path):
    sd, _ = folders("sd")
    schnell, _ = folders("flux-schnell")
    assert "guidance" in refusal(schnell, guidance=5.0, resolution=(16,))
    assert "share" in refusal(sd, guidance_rescale=2.0)
    assert "takes no guidance_rescale" in refusal(schnell, guidance_rescale=0.5)
    assert "multiple of 2" in refusal(sd, resolution=(17,))
    assert "multiple of 4" in refusal(sd, resolution=(18,))
    shutil.copytree(sd, tmp_path / "mute")
    shutil.rmtree(tmp_path / "mute" / "tokenizer")
    assert "no tokenizer" in refusal(tmp_path / "mute")
    index = tmp_path / "mute" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "KandinskyPipeline"}))
    assert "KandinskyPipeline" in refusal(tmp_path / "mute")
    index.write_text(json.dumps(json.loads((sd / "model_index.json").read_text()) | {"vae": ["os", "system"]}))
    assert "vae of os" in refusal(tmp_path / "mute")
    for tensors, word in (
        ({"lora_unet_mid.lora_down.weight": torch.zeros(2, 2)}, "names of diffusers"),
        ({"unet.nowhere.lora_A.weight": torch.zeros(2, 2)}, "no such layer"),
        ({"unet.conv_in.lora_A.weight": torch.zeros(2, 2)}, "both factors"),
        ({f"unet.conv_in.lora_{end}.weight": torch.zeros(2, 2) for end in "AB"}, "another network"),
    ):
        save_file(tensors, tmp_path / "wrong.safetensors")
        assert word in refusal(sd, lora=tmp_path / "wrong.safetensors", resolution=(16,))


def test_a_negative_prompt_is_of_one_sample(folders):
    folder, _ = folders("sd")
    network = imported(folder, "sd", num_steps=1).denoiser.network
    with pytest.raises(ValueError, match="row"):
        network.set_null(Condition({"encoder_hidden_states": torch.zeros(2, 16, 16)}))

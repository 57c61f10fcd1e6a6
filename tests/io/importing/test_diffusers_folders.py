"""An imported teacher samples what the diffusers pipeline samples, from the same noise at the same noise levels."""

import json

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
)
from stock_models import ddim, dit, save, unet, vae, vq
from torch.testing import assert_close

from fdistill.io.export import export_folder
from fdistill.io.importing import Options, import_model
from fdistill.io.load import read_folder
from fdistill.models.networks import StockUNet
from fdistill.sampling import DDIM, Euler

pytestmark = pytest.mark.system  # seconds, too many for make check

STEPS = 5
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SCHEDULES = {
    "DDPM": {},
    "Stable Diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
    "given": {"trained_betas": [0.02] * 50, "num_train_timesteps": 50},
}


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def levels(model, scheduler):
    """The noise levels of the timesteps that a scheduler visits, and 0."""
    scheduler.set_timesteps(STEPS)
    path = model.denoiser.preconditioning.path
    sigmas = path.noise_ratio(scheduler.timesteps.double() / (path.num_timesteps - 1))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


@torch.no_grad()
def undecoded(model, scheduler, n, seed, labels=None, guidance=1.0):
    """DDIM of ours from the noise of a seed, which a pipeline takes for x_t at its first timestep."""
    sigmas = levels(model, scheduler)
    share = float(model.denoiser.preconditioning.path.sigma(model.denoiser.preconditioning.path.time(sigmas[:1])))
    return DDIM()(model.denoiser, model.noise(n, seed) / share, sigmas, labels, guidance)


@torch.no_grad()
def sampled(model, *arguments, **more):
    return model.decode(undecoded(model, *arguments, **more))


def drawn(pipeline, seed, **arguments):
    images = quiet(pipeline)(
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(seed), output_type="np", **arguments
    ).images
    return torch.as_tensor(images).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_of_ours_is_the_whole_run_of_the_pipeline(prediction, schedule, tmp_path):
    pipeline = DDIMPipeline(unet(), ddim(prediction_type=prediction, **schedule))
    model = import_model(save(pipeline, tmp_path))
    ours = sampled(model, pipeline.scheduler, 3, seed=4).clamp(-1, 1)
    # rounding of a whole run in float32, which differs from one kind of CPU to another
    assert_close(ours, drawn(pipeline, 4, batch_size=3), rtol=0, atol=5e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@torch.no_grad()
def test_the_denoised_image_is_that_of_every_scheduler_of_the_family(prediction, tmp_path):
    network = unet()
    stock = DDPMScheduler(prediction_type=prediction, clip_sample=False)
    model = import_model(save(DDPMPipeline(network, stock), tmp_path))
    path, x = model.denoiser.preconditioning.path, model.noise(2, 1)
    for timestep in (3, 500, 999):
        sigma = path.noise_ratio(torch.full((2,), timestep / 999))
        x_t = x * path.sigma(torch.tensor(timestep / 999)) + 0.2
        alpha = path.alpha(torch.tensor(timestep / 999))
        output = network(x_t, timestep).sample
        known = stock.step(output, timestep, x_t).pred_original_sample
        close = {"rtol": 2e-4, "atol": 1e-5 + 1e-6 * float(sigma[0])}  # the noise of x is taken away from x
        assert_close(model.denoiser(x_t / alpha, sigma), known, **close)
        euler = EulerDiscreteScheduler(prediction_type=prediction) if prediction != "sample" else None
        if euler is not None:
            euler.set_timesteps(timesteps=[timestep, 0])
            euler.is_scale_input_called = True
            known = euler.step(output, euler.timesteps[0], x_t / alpha).pred_original_sample
            assert_close(model.denoiser(x_t / alpha, sigma), known, **close)


@torch.no_grad()
def test_a_flow_is_sampled_as_its_scheduler_does(tmp_path):
    network, scheduler = unet(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    model = import_model(save(DDPMPipeline(network, scheduler), tmp_path))
    scheduler.set_timesteps(STEPS)
    times = scheduler.sigmas[1:].double()  # at time 1 the noise ratio is infinite
    x = start = model.noise(2, 3)
    for timestep in scheduler.timesteps[1:]:
        x = scheduler.step(network(x, timestep).sample, timestep, x).prev_sample
    ours = Euler()(model.denoiser, start / times[0].float(), times / (1 - times))
    assert_close(ours, x, rtol=0, atol=1e-5)


def test_a_flow_is_sampled_at_shifted_times_from_almost_pure_noise(tmp_path):
    save(DDPMPipeline(unet(), FlowMatchEulerDiscreteScheduler(shift=3.0)), tmp_path)
    t = import_model(tmp_path, Options(num_steps=4)).sigmas
    t = t / (1 + t)
    u = t / (3 - 2 * t)  # undo the shift
    assert_close(u, torch.linspace(float(u[0]), 0, 5, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert t[0].item() == pytest.approx(0.999)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_dit_with_its_vae_makes_the_images_of_its_pipeline(guidance, tmp_path):
    stock = DiTPipeline(dit(num_embeds_ada_norm=1000), vae(), ddim())
    model = import_model(save(stock, tmp_path))
    images = drawn(stock, 2, class_labels=[3, 999], guidance_scale=guidance)
    ours = sampled(model, stock.scheduler, 2, 2, torch.tensor([3, 999]), guidance)
    assert_close(ours, images, rtol=0, atol=2e-5)
    assert (model.sample_shape, model.image_shape, model.num_classes) == ((4, 8, 8), (3, 16, 16), 1000)


def test_a_unet_of_latents_with_a_quantising_vae_makes_the_images_of_its_pipeline(tmp_path, monkeypatch):
    stock, seen = LDMPipeline(vq(), unet(), ddim()), []
    model, decode = import_model(save(stock, tmp_path)), stock.vqvae.decode
    monkeypatch.setattr(stock.vqvae, "decode", lambda z: seen.append(z) or decode(z))
    images, latents = drawn(stock, 2, batch_size=2), seen[0] * stock.vqvae.config.scaling_factor
    # in two parts: where a latent lies between two codes, the last bit chooses one, and that of the processor differs;
    # latents are up to 50 here, so that 2e-5 alone would be their last bits
    assert_close(undecoded(model, stock.scheduler, 2, 2), latents, rtol=2e-6, atol=2e-5)
    with torch.no_grad():
        assert_close(model.decode(latents), images, rtol=0, atol=2e-5)


def test_teacher_samples_on_edms_grid_between_the_ends_of_its_path(tmp_path):
    save(DDPMPipeline(unet(), DDPMScheduler()), tmp_path)
    model = import_model(tmp_path, Options(num_steps=7, sigma_data=0.3))
    path = model.denoiser.preconditioning.path
    ends = path.noise_ratio(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert_close(model.sigmas[[0, 6, 7]], torch.cat([ends, torch.zeros(1, dtype=torch.float64)]), rtol=1e-12, atol=0)
    assert (model.evaluations, model.facts["sigma_data"]) == (13, 0.3)


def test_the_exported_teacher_is_the_imported_one(tmp_path):
    model = import_model(save(DiTPipeline(dit(), vae(), ddim()), tmp_path / "stock"), Options(num_steps=2))
    again = read_folder(export_folder(model, tmp_path / "teacher"))
    samples = [each.decode(each.sample(each.noise(2, 0), each.labels(2))) for each in (model, again)]
    assert torch.equal(*samples)
    assert again.facts == model.facts
    assert again.facts["format"] == "DiTPipeline of diffusers"


def test_a_network_alone_finds_its_scheduler_inside_beside_or_where_told(tmp_path):
    network, scheduler = unet(num_class_embeds=3), DDPMScheduler(beta_end=0.01)
    save(DDPMPipeline(network, scheduler), tmp_path / "pipeline")
    save(network, tmp_path / "alone")
    scheduler.save_pretrained(tmp_path / "elsewhere")
    file = tmp_path / "elsewhere" / "scheduler_config.json"
    told = [import_model(tmp_path / "alone", Options(scheduler=place)) for place in (file, file.parent)]
    scheduler.save_pretrained(tmp_path / "alone")
    found = [import_model(tmp_path / place) for place in ("pipeline", "pipeline/unet", "alone")]
    specs = [model.denoiser.spec() for model in (*told, *found)]
    assert all(spec == specs[0] for spec in specs)
    assert specs[0]["init_args"]["preconditioning"]["init_args"]["path"]["init_args"]["beta_end"] == 0.01
    assert found[0].num_classes == 3


def test_a_vae_is_told_to_a_network_of_latents(tmp_path):
    save(DDPMPipeline(unet(in_channels=4, out_channels=4), DDPMScheduler()), tmp_path / "pipeline")
    save(vae(), tmp_path / "vae")
    model = import_model(tmp_path / "pipeline" / "unet", Options(vae=tmp_path / "vae"))
    assert model.image_shape == (3, 16, 16)
    assert model.facts["sigma_data"] == 1.0


def test_a_dit_of_before_it_had_a_class_of_its_own_is_read(tmp_path):
    stock = save(DiTPipeline(dit(), vae(), ddim()), tmp_path)
    file = stock / "transformer" / "config.json"
    config = json.loads(file.read_text())
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "only_cross_attention": False}
    file.write_text(json.dumps(config | old))
    assert import_model(stock).num_classes == 5


def test_a_last_class_that_means_none_allows_guidance(tmp_path):
    save(DDPMPipeline(unet(num_class_embeds=4), DDPMScheduler()), tmp_path)
    model = import_model(tmp_path, Options(guidance=2.0, last_class_is_none=True))
    assert (model.num_classes, model.guidance) == (3, 2.0)
    assert model.sample(model.noise(2, 0), model.labels(2)).isfinite().all()
    assert isinstance(model.denoiser.network, StockUNet)


def test_latents_of_edm2_are_decoded_after_their_scale_by_channel(tmp_path, monkeypatch):
    (tmp_path / "network.pkl").touch()
    scale, bias = [0.5, 1.0, 2.0, 4.0], [0.1, 0.2, -0.3, 0.4]
    network = save(DDPMPipeline(unet(in_channels=4, out_channels=4), DDPMScheduler()), tmp_path / "stock")
    teacher = import_model(network)
    monkeypatch.setattr("fdistill.io.importing.edm_pickle.read_edm", lambda path: teacher)
    options = Options(vae=save(vae(), tmp_path / "vae"), num_steps=3)
    with pytest.raises(ValueError, match="VAE"):
        import_model(tmp_path / "network.pkl", options)
    teacher.facts |= {"latents_scale": scale, "latents_bias": bias}
    model = read_folder(export_folder(import_model(tmp_path / "network.pkl", options), tmp_path / "teacher"))
    raw = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    latents = raw * torch.tensor(scale)[:, None, None] + torch.tensor(bias)[:, None, None]
    with torch.no_grad():
        assert_close(model.decode(latents), vae().decode(raw).sample.clamp(-1, 1), rtol=0, atol=1e-5)
    assert len(model.sigmas) == 4

"""What every sampler promises: counted evaluations, samples of their own latents, rebuilding, precision, refusals."""

import json
import math

import pytest
import torch
from sampler_cases import SAMPLERS, STOCHASTIC, exact, latents, name, network
from torch.testing import assert_close

from fdistill.core.random import LatentStreams
from fdistill.sampling import (
    DDIM,
    GDDIM,
    Heun,
    PredictorCorrector,
    Renoising,
    Restart,
    Sampler,
    generate,
    multi_step,
    one_step,
)
from fdistill.theory.noise_levels import karras_grid

pytestmark = pytest.mark.system  # seconds, too many for make check

GRIDS = {
    "to zero": karras_grid(7, 0.05, 5.0),
    "to noise": karras_grid(7, 0.05, 5.0)[:-1],
    "one step": torch.tensor([5.0, 1.0]),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=name)


@each_sampler
@pytest.mark.parametrize(("grid", "guidance"), zip(GRIDS.values(), (1.0, 2.0, 2.0), strict=True), ids=GRIDS)
def test_stated_evaluations_are_those_made_at_the_stated_levels(sampler, grid, guidance):
    unconditional, labelled = exact(), network()
    sampler(unconditional, latents(), grid, None, guidance)
    sampler(labelled, latents(), grid, torch.zeros(16, dtype=torch.long), guidance)
    assert len(unconditional.asked) == sampler.evaluations(grid)
    assert len(labelled.asked) == sampler.evaluations(grid) * (1 if guidance == 1 else 2)
    assert unconditional.levels == sampler.visits(grid)
    assert min(unconditional.levels) > 0


@each_sampler
def test_a_sample_is_a_function_of_its_own_latent_and_class(sampler):
    grid, noise, labels, guidance = GRIDS["to zero"], latents(), torch.arange(16) % 3, 3.0
    whole = sampler(network(), noise, grid, labels, guidance)
    pieces = generate(sampler, network(), noise, grid, labels, guidance, batch_size=5)
    assert_close(pieces, whole, rtol=1e-10, atol=1e-10)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert_close(sampler(network(), noise[order], grid, labels[order], guidance), whole[order], rtol=1e-10, atol=1e-10)


@each_sampler
def test_a_description_rebuilds_it(sampler):
    spec = json.loads(json.dumps(sampler.spec()))
    again = Sampler.from_spec(spec)
    assert type(again) is type(sampler)
    assert again.spec() == spec
    assert again.is_stochastic == sampler.is_stochastic
    samples = [s(network(), latents(), GRIDS["to zero"], torch.arange(16) % 3) for s in (sampler, again)]
    assert torch.equal(*samples)


@each_sampler
def test_single_and_double_precision_draw_the_same_noise(sampler):
    noise, labels = latents().float(), torch.arange(16) % 3
    single = sampler(network(dtype=torch.float32), noise, GRIDS["to zero"], labels)
    double = sampler(network(), noise.double(), GRIDS["to zero"], labels)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@each_sampler
def test_images_are_sampled_as_vectors_are(sampler):
    """Norms and noise are of whole samples, whatever their shape."""
    grid, noise = GRIDS["to zero"], latents(6, dim=4)

    def shrink(x, sigma, labels):
        return x * (0.25 / (0.25 + sigma.square())).reshape(-1, *[1] * (x.ndim - 1))

    shrink.num_classes = 0
    images = sampler(shrink, noise.reshape(6, 1, 2, 2), grid)
    assert_close(images.reshape(6, 4), sampler(shrink, noise, grid), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not isinstance(s, Restart)], ids=name)
def test_a_single_step_to_zero_noise_ends_on_the_denoised_sample(sampler):
    denoiser = exact()
    sample = sampler(denoiser, latents(), torch.tensor([1.0, 0.0]))
    x, level = denoiser.asked[-1]
    assert_close(sample, denoiser(x, torch.full((16,), level, dtype=torch.float64)), rtol=1e-12, atol=1e-12)
    if not sampler.is_stochastic:
        assert_close(sample, one_step(exact(), latents(), torch.tensor([1.0])), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_noise_is_fresh_in_every_draw_and_for_every_latent_and_not_the_global_one(sampler):
    grid = GRIDS["to zero"]
    state = torch.get_rng_state()
    samples = sampler(exact(), latents(), grid)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sampler(exact(), latents(), grid), samples)
    shifted = latents() + 1e-3  # another latent next to it: other noise
    assert (sampler(exact(), shifted, grid) - samples).abs().mean() > 0.02


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not s.is_stochastic], ids=name)
def test_a_deterministic_sampler_draws_nothing(sampler, monkeypatch):
    samples = sampler(exact(), latents(), GRIDS["to zero"])
    monkeypatch.setattr("fdistill.sampling.base.LatentStreams", None)  # a call of it would be an error
    assert torch.equal(sampler(exact(), latents(), GRIDS["to zero"]), samples)


@pytest.mark.parametrize("sampler", [one_step, *SAMPLERS], ids=lambda s: getattr(s, "__name__", None) or name(s))
def test_a_grid_that_does_not_fall_to_zero_is_refused(sampler):
    nan = math.nan
    rising = ([], [1.0, 1.0, 0.0], [1.0, 2.0], [1.0, 0.0, -0.5], [0.0], [-1.0], [[1.0, 0.0]], [1.0, nan], [nan, 0.0])
    for grid in map(torch.tensor, rising):
        with pytest.raises(ValueError, match="falls"):
            sampler(exact(), latents(), grid)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DDIM(1.2), "GDDIM"),
        (lambda: DDIM(-0.1), "finite"),
        (lambda: DDIM(math.nan), "finite"),
        (lambda: DDIM(math.inf), "Renoising"),
        (lambda: GDDIM(-1.0), "finite"),
        (lambda: GDDIM(math.inf), "Renoising"),
        (lambda: GDDIM(math.nan), "got nan"),
        (lambda: Heun(churn=-1.0), "churn"),
        (lambda: Heun(churn=math.inf), "churn"),
        (lambda: Heun(churn=math.nan), "got nan"),
        (lambda: Heun(1.0, 3.0, 2.0), "churn_min"),
        (lambda: Heun(1.0, -3.0), "got -3.0 and inf"),
        (lambda: Heun(1.0, churn_noise=0.0), "churn_noise"),
        (lambda: PredictorCorrector(corrections=0), "predictor"),
        (lambda: PredictorCorrector(signal_to_noise=0.0), "signal_to_noise"),
        (lambda: PredictorCorrector(signal_to_noise=math.nan), "got nan"),
        (lambda: PredictorCorrector(norms="batch"), "batch"),
        (lambda: Restart(2.0, 1.0), "sigma_high"),
        (lambda: Restart(0.0, 1.0), "got 0.0 and 1.0"),
        (lambda: Restart(1.0, math.inf), "got 1.0 and inf"),
        (lambda: Restart(0.1, 1.0, times=0), "num_steps"),
        (lambda: Restart(0.1, 1.0, num_steps=0), "got 1 and 0"),
        (
            lambda: Restart(0.1, 0.2).visits(torch.tensor([1.0, 0.5, 0.0])),
            r"expected one in \[0.1, 0.2\), got 1, 0.5, 0",
        ),
        (lambda: Restart(0.1, 2.0).visits(torch.tensor([1.0, 0.0])), r"comes down to: expected one in \[0.1, 2.0\)"),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(build, words):
    with pytest.raises(ValueError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


def test_generated_samples_carry_no_gradient():
    samples = generate(one_step, network(), latents(), torch.tensor([5.0]), torch.zeros(16, dtype=torch.long))
    assert not samples.requires_grad


@each_sampler
def test_samples_carry_a_gradient_to_their_latents_outside_generate(sampler):
    noise = latents(3).requires_grad_()
    (gradient,) = torch.autograd.grad(sampler(exact(), noise, GRIDS["to zero"]).sum(), noise)
    assert gradient.isfinite().all()
    assert (gradient != 0).any(dim=1).all()


@pytest.mark.parametrize("n", [4, 20])
def test_as_many_labels_as_samples_are_required(n):
    with pytest.raises(ValueError, match=f"16.*{n}"):
        generate(one_step, network(), latents(), torch.tensor([5.0]), torch.zeros(n, dtype=torch.long), 1.0, 4)


def test_renoising_is_what_a_student_of_several_steps_does():
    """With the same noise, and a last step to zero."""
    levels = torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64)
    noise = latents()
    streams = LatentStreams(noise)
    blocks = torch.stack([noise, streams.normal(), streams.normal()], dim=1)
    samples = Renoising()(exact(), noise, torch.cat([levels, torch.zeros(1)]))
    assert_close(samples, multi_step(exact(), blocks, levels), rtol=1e-12, atol=1e-12)

"""A network is never asked at a noise level outside of its path: numbers there are refused, tails are cut off."""

import logging
import math

import pytest
import torch
from tiny_runs import distillation, exact, fit, mlp, teacher_training

from fdistill.core.meta_device import without_weights
from fdistill.core.weight_files import CheckpointError
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.objectives import DMD2, SiDA
from fdistill.sampling import Heun
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import GivenGrid
from fdistill.theory.noise_levels import KarrasUniform, LogNormal, LogUniform, Truncated, UniformTime
from fdistill.theory.paths import (
    DDPMPath,
    NoiseRange,
    RectifiedFlow,
    ScaledLinear,
    TrigFlow,
    VarianceExploding,
    VPCosine,
    VPLinear,
)
from fdistill.theory.preconditioning import EDM, EpsPrediction, VelocityPrediction
from fdistill.training.discrimination import NoisedInput
from fdistill.training.initial_networks import teacher_model

STOCK = DDPMPath(0.00085, 0.012, 1000, "scaled_linear")  # Stable Diffusion's
IMPORTED = LogNormal(-0.8, 1.6)  # configs/imported.yaml
HIGH = STOCK.noise_range.high


def on_path(path=STOCK, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(MLP(dim=2, width=16, depth=2), EpsPrediction(path, 999.0))


def student(**changes):
    return distillation(on_path(), **{"noise_levels": IMPORTED, "sigma_data": 1.0} | changes)


def test_a_path_of_timesteps_ends_where_its_alphas_do():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = torch.cumprod(1 - betas, 0)
    ends = ((1 - kept) / kept).sqrt()[[0, -1]]
    assert STOCK.noise_range == pytest.approx(ends.tolist(), rel=1e-12)
    assert STOCK.noise_range.high == pytest.approx(14.6146, abs=1e-4)


@pytest.mark.parametrize("path", [RectifiedFlow(), VPCosine(), TrigFlow(), VarianceExploding()])
def test_a_path_that_ends_without_signal_has_every_noise_level(path):
    assert path.noise_range == (0, math.inf)


@pytest.mark.parametrize("path", [VPLinear(), ScaledLinear()])
def test_a_path_of_a_rate_starts_at_0_and_ends(path):
    low, high = path.noise_range
    assert low == 0
    assert float(path.time(torch.tensor(high, dtype=torch.float64))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigma_init": 40.0}, "sigma_init"),
        ({"sigma_init": 14.63}, "sigma_init"),
        ({"sigma_init": 0.02}, "sigma_init"),
        ({"renoise_levels": [1.0, 0.01]}, "renoise_levels"),
        ({"noise_levels": LogNormal(3.0, 1.0)}, "noise_levels"),
        ({"fake_noise_levels": LogUniform(14.0, 80.0), "turn": "alternating"}, "fake_noise_levels"),
    ],
)
def test_a_level_outside_and_a_law_that_lies_outside_are_refused(changes, named):
    with pytest.raises(ValueError, match=named) as error:
        student(**changes)
    assert "14.6146" in str(error.value)


@pytest.mark.parametrize("level", [HIGH, float(torch.tensor(HIGH)), 14.6147, STOCK.noise_range.low, 0.0291675])
def test_the_ends_of_the_path_are_on_it_whatever_they_were_rounded_to(level):
    assert student(sigma_init=level).levels == (level,)


@pytest.mark.parametrize(
    ("law", "outside"),
    [(IMPORTED, 0.059), (KarrasUniform(), 0.383), (UniformTime(STOCK, 0.0, 1.0), 0.0), (LogNormal(0.0, 0.5), 0.0)],
    ids=lambda value: type(value).__name__,
)
def test_a_tail_outside_is_cut_off_and_told(law, outside, caplog):
    with caplog.at_level(logging.INFO):
        module = student(noise_levels=law)
    low, high = STOCK.noise_range
    sigma = law.quantile(torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64))
    assert float(((sigma < low) | (sigma > high)).double().mean()) == pytest.approx(outside, abs=2e-3)
    if outside:
        assert isinstance(module.noise_levels, Truncated)
        assert 1 - module.noise_levels.inside == pytest.approx(outside, abs=2e-3)
        assert f"{1 - module.noise_levels.inside:.2%}" in caplog.text
    else:
        assert module.noise_levels is law
        assert "cut" not in caplog.text
    drawn = module.noise_levels.sample(200_000, torch.Generator().manual_seed(0))
    assert STOCK.noise_range.first_outside([float(drawn.min()), float(drawn.max())]) is None
    assert module.ratio.noise_levels is module.noise_levels  # bins of equal probability of what is drawn


def test_paths_without_end_change_nothing(caplog):
    law = LogNormal(3.0, 2.0)
    with caplog.at_level(logging.INFO):
        modules = [distillation(noise_levels=law, sigma_init=500.0), teacher_training(noise_levels=law)]
        flow = Denoiser(mlp().network, VelocityPrediction(1000.0))
        modules.append(distillation(flow, noise_levels=law, sigma_init=500.0, sigma_data=1.0))
    assert all(module.noise_levels is law for module in modules)
    assert "cut" not in caplog.text


@pytest.mark.parametrize(
    ("objective", "reads"), [(DMD2(0.1), "teacher"), (SiDA(0.1), "fake_score")], ids=["DMD2", "SiDA"]
)
@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_no_network_of_a_run_is_evaluated_outside_with_instance_noise_and_several_steps(
    turn, objective, reads, monkeypatch
):
    asked, encode = [], Denoiser.encode

    def watched(self, x, sigma, labels=None, **how):
        asked.extend(sigma.tolist())
        return encode(self, x, sigma, labels, **how)

    monkeypatch.setattr(Denoiser, "encode", watched)
    turns = {"turn": turn, "fake_updates_per_student": 1}
    levels = {"noise_levels": LogNormal(1.0, 1.6), "sigma_init": HIGH, "renoise_levels": [1.0]}
    fit(student(objective=objective, discriminator=reads, instance_noise=3.0, **turns, **levels), 4)
    assert max(asked) > 0.9 * HIGH
    assert STOCK.noise_range.first_outside(asked) is None


def test_instance_noise_near_the_end_keeps_level_and_noise_together():
    sigma, x_t = torch.tensor([1.0, 14.0, HIGH]), torch.zeros(3, 100_000)
    seen = NoisedInput(x_t, sigma, None).with_instance_noise(5.0, torch.Generator().manual_seed(0), HIGH)
    added = (seen.sigma.square() - sigma.square()).sqrt()
    torch.testing.assert_close(seen.sigma, torch.tensor([26**0.5, HIGH, HIGH]))
    torch.testing.assert_close(seen.x_t.std(dim=1), added, rtol=1e-2, atol=1e-2)


def test_a_network_of_another_path_narrows_what_is_drawn_and_nothing_in_common_is_refused():
    narrow = DDPMPath(0.00085, 0.012, 300, "scaled_linear")
    module = student(fake_score=on_path(narrow))
    assert module.known == STOCK.noise_range.shared(narrow.noise_range)
    assert module.known.high < 3
    edm = student(student=mlp(), sigma_init=80.0)  # EDM knows every level; the teacher is not evaluated there
    assert edm.levels == (80.0,)
    assert edm.known == STOCK.noise_range
    assert NoiseRange(0, 1).shared(NoiseRange(2, 3)) == (2, 1)


def test_a_teacher_that_trains_keeps_to_its_path():
    path = {"preconditioning": EpsPrediction(STOCK, 999.0), "sigma_min": 0.03, "sigma_max": 14.0}
    cut = teacher_training(noise_levels=IMPORTED, **path).noise_levels
    assert 1 - cut.inside == pytest.approx(0.059, abs=1e-3)
    for changes, named in (
        ({"sigma_max": 80.0}, "sigma_max"),
        ({"sigma_min": 0.002}, "sigma_min"),
        ({"noise_levels": LogNormal(4.0, 1.0)}, "noise_levels"),
        ({"sampler": Heun(churn=40.0)}, "grid"),
        ({"grid": GivenGrid([20.0, 1.0, 0.0]), "sigma_min": 0.002, "sigma_max": 80.0}, "grid"),
    ):
        with pytest.raises(ValueError, match=named):
            teacher_training(**path | changes)


def test_sampling_outside_is_refused_and_a_file_that_says_so_is_warned_of():
    with pytest.raises(ValueError, match="path"):
        GenerativeModel.teacher(on_path(), 5, 0.002, 14.0)
    with pytest.raises(ValueError, match="path"):
        GenerativeModel.student(on_path(), [40.0, 1.0])
    with pytest.warns(UserWarning, match="outside"):
        GenerativeModel(on_path(), "student", torch.tensor([40.0]))
    ends = teacher_model(on_path()).sigmas[[0, -2]].tolist()
    assert ends == pytest.approx([HIGH, STOCK.noise_range.low])
    assert teacher_model(mlp()).sigmas[[0, -2]].tolist() == pytest.approx([80.0, 0.002])


def test_edm_networks_know_every_level():
    assert EDM(0.5).noise_range == (0, math.inf)


def test_a_level_that_the_teacher_finds_is_said_kept_and_that_of_the_student(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        module = distillation(exact([[2.0, -1.0]], [0.5]), student=mlp(), fake_score=mlp(), sigma_init="auto")
    (level,) = module.levels
    assert level == pytest.approx(math.sqrt(3) / 2, rel=0.006)
    assert f"sigma_init auto: the student starts from noise of {level:g}" in caplog.text
    fit(module, 1).save_checkpoint(tmp_path / "last.ckpt")
    assert load_model(tmp_path / "last.ckpt").sigmas.tolist() == [level]
    again = distillation(exact([[2.0, -1.0]], [0.5]), student=mlp(), fake_score=mlp(), sigma_init="auto")
    fit(again, 2, resume_from=tmp_path / "last.ckpt")
    again.levels = (2.0,)
    with pytest.raises(CheckpointError, match=r"continue with --model\.sigma_init 0\.86"):
        again.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))


def test_a_level_is_found_along_the_path_and_not_above():
    (level,) = student(sigma_init="auto").levels
    assert STOCK.noise_range.low <= level <= HIGH


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sigma_init": "best"}, "a noise level, or auto: got 'best'"),
        ({"sigma_init": "auto", "start": "unit"}, "got start unit"),
        ({"sigma_init": "auto", "meta_start": True}, "got meta_start true"),
        ({"sigma_init": "auto", "renoise_levels": [90.0]}, "numbers that fall from sigma_init"),
    ],
)
def test_a_level_that_cannot_be_found_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        distillation(**changes)


def test_a_plan_needs_no_level():
    with without_weights():
        assert distillation(sigma_init="auto").levels == (1.0,)

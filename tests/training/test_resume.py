"""A run that was stopped and continued is, bit for bit, the run that was not."""

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import GivenData, distillation, fit, mlp, ring, teacher_training, weights

from fdistill.models.denoiser import Denoiser
from fdistill.models.learned_uncertainty import LearnedUncertainty
from fdistill.models.networks import DiffusersUNet, EDM2UNet
from fdistill.objectives import DMD2, DiffInstruct, ScoreOfMixture, SiDA, UniInstruct, WarmStarted
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.preconditioning import EDM
from fdistill.theory.schedules import Linear


class SaveAt(L.Callback):
    """Saves a checkpoint at the end of one turn, as a scheduled checkpoint does."""

    def __init__(self, turn, path):
        self.turn, self.path = turn, path

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.turn:
            trainer.save_checkpoint(self.path)


def unet_with_dropout():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(DiffusersUNet(resolution=4, widths=(8,), dropout=0.3), EDM(1.0))


def edm2():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EDM2UNet(4, 1, model_channels=8, channel_mult=(1,), blocks_per_level=1, channels_per_head=8)
    return Denoiser(network, EDM(1.0))


def images():
    return GivenData(torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), batch_size=16)


CASES = {
    "fused": (lambda: distillation(adversarial_weight=0.1), ring),
    "fused, sample discriminator": (lambda: distillation(discriminator="sample"), ring),
    "alternating after a warm-up": (
        lambda: distillation(turn="alternating", fake_updates_per_student=1, fake_score_warmup=2),
        ring,
    ),
    "samples used again": (
        lambda: distillation(mlp(num_classes=2), turn="alternating", fake_updates_per_student=3, reuse_generated=True),
        ring,
    ),
    "two steps, alternating": (
        lambda: distillation(renoise_levels=[0.5], turn="alternating", fake_updates_per_student=1),
        ring,
    ),
    "SiDA on the fake score, penalised": (
        lambda: distillation(objective=SiDA(0.1), discriminator="fake_score", r1_weight=0.1, r1_step=0.1),
        ring,
    ),
    "Uni-Instruct": (lambda: distillation(objective=UniInstruct(JensenShannon(), "normalised")), ring),
    "random skews": (lambda: distillation(objective=ScoreOfMixture()), ring),
    "imitation": (lambda: distillation(objective=DiffInstruct(), imitation=0.9), ring),
    "warm start and schedule": (
        lambda: distillation(objective=WarmStarted(DMD2(Linear(0.0, 1.0, 5)), DiffInstruct(), 4)),
        ring,
    ),
    "guided fake score": (
        lambda: distillation(
            mlp(num_classes=2),
            turn="alternating",
            fake_updates_per_student=1,
            fake_label_dropout=0.3,
            fake_guidance=2.0,
        ),
        ring,
    ),
    "weights of unit magnitude": (
        lambda: distillation(edm2(), objective=DiffInstruct(), turn="alternating", fake_updates_per_student=2),
        images,
    ),
    "teacher": (lambda: teacher_training(mlp(num_classes=2).network), ring),
    "teacher with dropout": (lambda: teacher_training(unet_with_dropout().network), images),
    "teacher with a weight that learns": (lambda: teacher_training(loss_weight=LearnedUncertainty(1.0)), ring),
}


@pytest.mark.parametrize("case", CASES)
def test_three_turns_and_three_more_equal_six(case, tmp_path):
    build, data = CASES[case]
    path = tmp_path / "half.ckpt"
    torch.manual_seed(0)
    whole = build()
    uninterrupted = fit(whole, 6, data(), callbacks=[SaveAt(3, path)])

    torch.manual_seed(99)  # a new process has another random state
    continued = build()
    with torch.no_grad():
        for name, parameter in continued.named_parameters():  # what is not restored would show
            if not name.startswith("teacher."):
                parameter.add_(1.0)
    resumed = fit(continued, 6, data(), resume_from=path)

    assert resumed.global_step == uninterrupted.global_step == 6
    end, expected = weights(continued), weights(whole)
    assert end.keys() == expected.keys()
    assert [name for name in end if not torch.equal(end[name], expected[name])] == []
    for a, b in zip(resumed.optimizers, uninterrupted.optimizers, strict=True):
        states = a.state_dict()["state"], b.state_dict()["state"]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][i][key], states[1][i][key]) for i in states[0] for key in states[0][i])


def test_a_run_that_ended_continues_where_it_ended(tmp_path):
    fit(first := distillation(), 5).save_checkpoint(tmp_path / "end.ckpt")
    fit(whole := distillation(), 10)
    assert any(not torch.equal(a, weights(whole)[name]) for name, a in weights(first).items())
    fit(continued := distillation(), 10, resume_from=tmp_path / "end.ckpt")
    assert all(torch.equal(a, weights(whole)[name]) for name, a in weights(continued).items())


def test_dropout_really_draws_from_the_state_that_is_restored():
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = teacher_training(unet_with_dropout().network)
        fit(module, 2, images())
        ends.append(module.ema.average.network.unet.conv_in.weight)
    assert not torch.equal(*ends)


def test_checkpoints_are_plain_and_tell_seconds_turns_and_random_states(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(distillation(seed=5), 3).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    facts = checkpoint["fdistill"]["facts"]
    assert (facts["seed"], facts["turns"], facts["batch_size"]) == (5, 3, 32)
    assert facts["train_seconds"] >= 0
    assert facts["data"]["class_path"] == "fdistill.data.GaussianMixtureData"
    assert [set(state) for state in checkpoint["random_states"]] == [{"cpu"}]


def test_training_time_adds_up_over_a_resume(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(distillation(), 2).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["fdistill"]["facts"]["train_seconds"] = 1000.0
    torch.save(checkpoint, path)
    module = distillation()
    fit(module, 3, resume_from=path)
    assert 1000 <= module.run_facts()["train_seconds"] < 1100

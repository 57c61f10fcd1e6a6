"""A teacher is tuned towards a reward: exactly resumable, whatever is evaluated at once, and a teacher at the end."""

import functools
import math

import pytest
import torch
from tiny_runs import GivenData, adam, distillation, exact, fit, mlp, ring, trainer, weights

from fdistill.io.export.folder import export_folder
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.networks import DiffusersUNet
from fdistill.objectives.image_rewards import Brightness, RewardSum
from fdistill.objectives.reward_algorithms import DDPO, DiffusionNFT, FlowGRPO, MixGRPO
from fdistill.objectives.rewards import Reward, TargetReward
from fdistill.sampling import DDIM
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import KarrasGrid
from fdistill.theory.preconditioning import EDM
from fdistill.training import NonFiniteError, RewardTuningModule
from fdistill.training.roles import SharedBase
from fdistill.training.rollout import roll_out

ALGORITHMS = {
    "DDPO": lambda **more: DDPO(**{"group": 2, "updates": 3, "clip": 0.01} | more),
    "Flow-GRPO": lambda **more: FlowGRPO(**{"group": 4} | more),
    "MixGRPO": lambda **more: MixGRPO(**{"group": 4, "window": 2, "every": 2, "updates": 2} | more),
    "DiffusionNFT": lambda **more: DiffusionNFT(**{"group": 4, "kl_weight": 0.1} | more),
}


class Faulty(Reward):
    """Does something wrong to its last sample."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x, condition):
        if self.fault == "raises":
            raise KeyError("prompt")
        found = x.flatten(1).mean(1)
        return found[:, None] if self.fault == "shape" else found.index_fill(0, torch.tensor([len(x) - 1]), torch.nan)


def tuning(algorithm=None, teacher=None, **changes):
    arguments = {"reward": TargetReward([1.0, -1.0]), "optimizer": adam, "grid": KarrasGrid(6, 0.05, 10.0)}
    module = RewardTuningModule(
        teacher or mlp(num_classes=2), algorithm=algorithm or ALGORITHMS["Flow-GRPO"](), **arguments | changes
    )
    return module.train()


class Places:
    """A decoder that notes where it decodes."""

    def __init__(self):
        self.asked = []

    def to(self, device):
        self.asked.append(device)
        return self

    def __call__(self, latents):
        assert self.asked
        return latents


def test_latents_are_decoded_on_the_modules_device():
    decoder = Places()
    teacher = GenerativeModel(mlp(num_classes=2), "teacher", KarrasGrid(6, 0.05, 10.0).levels(), decoder=decoder)
    module = tuning(teacher=teacher)
    fit(module, 1, data())
    assert set(decoder.asked) == {module.device}


def data(batch_size=8):
    return ring(batch_size=batch_size)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_turns_and_two_more_equal_four(name, tmp_path):
    path, build = tmp_path / "two.ckpt", lambda: tuning(ALGORITHMS[name]())
    whole = build()
    uninterrupted = fit(whole, 4, data())
    fit(build(), 2, data()).save_checkpoint(path)
    continued = build()
    with torch.no_grad():
        for part, parameter in continued.named_parameters():  # what is not restored would show
            if not part.startswith("reference."):
                parameter.add_(1.0)
    resumed = fit(continued, 4, data(), resume_from=path)
    assert resumed.global_step == uninterrupted.global_step == 4
    end, expected = weights(continued), weights(whole)
    assert end.keys() == expected.keys()
    assert [part for part in end if not torch.equal(end[part], expected[part])] == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_reward_rises_also_of_samples_made_without_noise(name):
    module = tuning(ALGORITHMS[name](group=8))
    before, noise, labels = module.generative_model(), torch.randn(400, 2), torch.arange(400) % 2

    def worth(model):
        return float(module.reward(model.sample(noise, labels)).mean())

    start = worth(before)
    fit(module, 25, data())
    assert worth(module.generative_model()) > start + 0.1


def test_with_one_update_the_policy_is_still_the_one_that_sampled():
    """So a clip of nearly nothing clips nothing, and changes nothing."""
    ends = []
    for clip in (1e-12, float("inf")):
        module = tuning(FlowGRPO(group=4, clip=clip))
        fit(module, 3, data())
        ends.append(weights(module))
    assert all(torch.equal(ends[0][part], ends[1][part]) for part in ends[0])


@pytest.mark.parametrize("name", ["DDPO", "MixGRPO"])
def test_what_is_evaluated_at_once_changes_rounding_alone(name):
    ends = []
    for at_once in (5, 1000):
        module = tuning(ALGORITHMS[name](), at_once=at_once, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
        fit(module, 2, data())
        ends.append(module.denoiser.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_a_heavy_divergence_keeps_the_policy_at_the_reference():
    moved = []
    for kl_weight in (0.0, 1e4):
        module = tuning(FlowGRPO(group=4, kl_weight=kl_weight))
        start = module.denoiser.network.output.bias.detach().clone()
        fit(module, 15, data())
        moved.append(float((module.denoiser.network.output.bias.detach() - start).norm()))
    assert moved[1] < 0.5 * moved[0]


def test_the_trajectory_lies_on_the_host_and_holds_the_window_alone():
    module = tuning(MixGRPO(group=4, window=2))
    fit(module, 1, data())
    condition = next(iter(data().train_dataloader())).condition
    rollout = module._roll_out(8, condition, 0)
    assert rollout.states.shape == (3, 32, 2)
    assert rollout.states.device.type == "cpu"
    assert not rollout.states.requires_grad
    assert module._roll_out(8, condition, 0).samples.equal(rollout.samples)


def test_a_tuned_teacher_is_a_teacher_that_is_sampled_as_before_and_distilled(tmp_path):
    model = GenerativeModel.teacher(mlp(num_classes=2), 4, 0.1, 5.0, guidance=1.5, sampler=DDIM())
    module = tuning(teacher=model)
    fit(module, 2, data()).save_checkpoint(tmp_path / "tuned.ckpt")
    tuned = load_model(tmp_path / "tuned.ckpt")
    assert (tuned.kind, tuned.guidance, type(tuned.sampler)) == ("teacher", 1.5, DDIM)
    assert torch.equal(tuned.sigmas, model.sigmas)
    assert tuned.facts["reward"]["class_path"].endswith("TargetReward")
    assert torch.equal(tuned.denoiser.network.output.bias, module.ema.average.network.output.bias)
    assert not torch.equal(tuned.denoiser.network.output.bias, model.denoiser.network.output.bias)
    fit(distillation(str(tmp_path / "tuned.ckpt")), 1, data())


@pytest.mark.parametrize("roles", [None, SharedBase(2, targets="all")], ids=["full", "adapters"])
def test_a_tuned_teacher_keeps_the_guide_that_it_is_sampled_by(roles, tmp_path):
    guided = GenerativeModel.teacher(mlp(num_classes=2), 4, 0.1, 5.0, guidance=Guidance(2.0, guide=mlp(seed=3)))
    teacher = export_folder(guided, tmp_path / "teacher")
    module = tuning(teacher=str(teacher), roles=roles)
    fit(module, 1, data()).save_checkpoint(tmp_path / "tuned.ckpt")
    tuned, noise, labels = load_model(tmp_path / "tuned.ckpt"), torch.randn(6, 2), torch.arange(6) % 2
    torch.testing.assert_close(tuned.sample(noise, labels), module.generative_model().sample(noise, labels))
    fit(tuning(teacher=str(teacher), roles=roles), 2, data(), resume_from=tmp_path / "tuned.ckpt")


def few_steps(levels=(4.0, 1.0, 0.3)):
    return GenerativeModel.student(mlp(num_classes=2, seed=2), levels)


def test_rollouts_of_a_student_are_its_own_samples():
    student, z = few_steps(), torch.randn(9, 3, 2, generator=torch.Generator().manual_seed(0))
    labels, draws = torch.arange(9) % 2, iter(z[:, 1:].unbind(1))

    def denoise(x, sigma, rows):
        return student.denoiser(x, torch.full((len(x),), sigma), labels[rows])

    made = roll_out(denoise, z[:, 0], [4.0, 1.0, 0.3, 0.0], [math.inf] * 2, lambda: next(draws), "sigma", 4)
    torch.testing.assert_close(made.samples, student.sample(z, labels))
    assert made.sigma.tolist() == [4.0, 1.0]
    torch.testing.assert_close(made.fresh, torch.tensor([1.0, 0.3]))
    assert made.old_share.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("algorithm", [FlowGRPO(math.inf, group=8, kl_weight=0.0), DDPO(math.inf, group=8)])
def test_a_student_of_several_steps_is_tuned_and_stays_one(algorithm, tmp_path):
    student, noise, labels = few_steps(), torch.randn(400, 3, 2), torch.arange(400) % 2
    module = tuning(algorithm, student, grid=None)

    def worth(model):
        return float(module.reward(model.sample(noise, labels)).mean())

    fit(module, 25, data()).save_checkpoint(tmp_path / "tuned.ckpt")
    tuned = load_model(tmp_path / "tuned.ckpt")
    assert (tuned.kind, tuned.sigmas.tolist()) == ("student", pytest.approx([4.0, 1.0, 0.3]))
    assert worth(tuned) > worth(student) + 0.1


@pytest.mark.parametrize(
    ("mistake", "word"),
    [
        (lambda: tuning(FlowGRPO(1.2), few_steps(), grid=None), "eta 1.2, 1.2"),
        (lambda: tuning(DiffusionNFT(), few_steps(), grid=None), "DiffusionNFT"),
        (lambda: tuning(MixGRPO(math.inf, window=1), few_steps(), grid=None), "MixGRPO"),
        (lambda: tuning(FlowGRPO(math.inf), few_steps()), "grid"),
        (lambda: tuning(FlowGRPO(math.inf), few_steps([4.0]), grid=None), "2 steps"),
    ],
)
def test_a_student_is_tuned_by_renoising_alone(mistake, word):
    with pytest.raises(ValueError, match=word) as error:
        mistake()
    assert "\n" not in str(error.value)


def test_images_are_judged_as_they_are_saved_and_validation_says_their_reward():
    images = GivenData(torch.zeros(16, 1, 2, 2), batch_size=8)

    module = tuning(FlowGRPO(group=2), teacher=image_teacher(), reward=RewardSum([Brightness(), TargetReward(0.0)]))
    with torch.no_grad():
        list(module.ema.average.network.parameters())[-1].fill_(1e4)  # the bias of the output
    run = trainer(1, limit_val_batches=1.0)
    (seen,) = run.validate(module, datamodule=images, verbose=False)
    assert seen["validation/Brightness"] == pytest.approx(1)
    assert seen["validation/TargetReward"] == pytest.approx(-2)


def image_teacher():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(DiffusersUNet(resolution=2, widths=(8,)), EDM(1.0))


@pytest.mark.parametrize("fault", ["raises", "shape", "nan"])
def test_a_reward_that_fails_stops_the_run_before_any_weight_moves(fault):
    module = tuning(reward=Faulty(fault))
    before = weights(module)
    with pytest.raises(ValueError, match="the reward Faulty") as error:
        fit(module, 2, data())
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())


def test_a_nan_is_told_with_its_term_and_the_update():
    module = tuning(ALGORITHMS["DDPO"](), gradient_clip=1e9)
    steps = []

    def spoil(gradient):
        steps.append(1)
        return gradient * torch.nan if len(steps) > 1 else gradient

    module.at_once = 10_000  # one backward pass an update
    module.denoiser.network.output.bias.register_hook(spoil)
    with pytest.raises(NonFiniteError, match="gradient of denoiser in update 2, after 1 that moved"):
        fit(module, 2, data())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": MixGRPO(window=9)}, "expected at most 5, got a window of 9"),
        ({"algorithm": FlowGRPO(group=4), "reference": mlp(num_classes=3)}, "reference is another model"),
        ({"algorithm": DDPO(), "reference": mlp(num_classes=2)}, "kl_weight"),
        ({"algorithm": DDPO(updates=2), "skip_nonfinite": 1}, "skip_nonfinite"),
        ({"algorithm": DDPO(), "grid": KarrasGrid(1, 0.05, 10.0)}, "at least 2 steps"),
        ({"teacher": exact([[0.0, 0.0]], [1.0])}, "no parameters"),
        ({"at_once": 0}, "at_once"),
    ],
)
def test_a_mistake_is_told_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        tuning(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "run", "words"),
    [
        ({}, {"precision": "bf16-mixed"}, "32-true"),
        ({"algorithm": DDPO(updates=99)}, {}, "updates of at most 40"),
    ],
)
def test_what_only_the_run_can_tell_is_told_before_any_weight_moves(changes, run, words):
    module = tuning(**changes)
    with pytest.raises(ValueError, match=words):
        fit(module, 1, data(), **run)

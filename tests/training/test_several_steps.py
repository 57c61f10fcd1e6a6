"""A student of several steps: how many it makes in a turn, which of them learns, and what the run produces."""

import functools

import lightning.pytorch as L
import pytest
import torch
from objective_runs import Asking, learning_by
from tiny_runs import adam, distillation, fit, mlp, moved, ring, weights

from fdistill.objectives import DiffInstruct, MongeRegularised, SiD
from fdistill.training import DistillationModule
from fdistill.training.generation import drawn_steps, simulate

LEVELS = (2.0, 0.8, 0.3)


def test_the_number_of_steps_is_uniform_and_a_function_of_seed_and_turn():
    drawn = torch.tensor([drawn_steps(0, turn, 3) for turn in range(3000)])
    counts = torch.bincount(drawn, minlength=4)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 4 * (3000 * 2 / 9) ** 0.5
    assert [drawn_steps(0, turn, 3) for turn in range(100)] == drawn[:100].tolist()
    assert [drawn_steps(1, turn, 3) for turn in range(100)] != drawn[:100].tolist()
    assert {drawn_steps(0, turn, 1) for turn in range(50)} == {1}


class Steps(L.Callback):
    """The noise level of every run of the student, and whether it was differentiated, by turn."""

    def __init__(self):
        self.turns = []

    def on_fit_start(self, trainer, module):
        module.student.register_forward_pre_hook(
            lambda _, inputs: self.turns[-1].append((round(float(inputs[1][0]), 6), torch.is_grad_enabled()))
        )

    def on_train_batch_start(self, *_):
        self.turns.append([])


def steps_of(turns=8, **changes):
    watch = Steps()
    fit(distillation(**{"renoise_levels": LEVELS[1:]} | changes), turns, callbacks=[watch])
    return watch.turns


def test_only_the_last_step_of_a_turn_has_a_graph_and_none_while_the_fake_score_learns():
    for turn, steps in enumerate(steps_of(turn="alternating", fake_updates_per_student=1)):
        number, student_learns = drawn_steps(0, turn, 3), turn % 2 == 1
        expected = [(level, False) for level in LEVELS[: number - 1]] + [(LEVELS[number - 1], student_learns)]
        assert steps == expected


def test_all_ranks_make_the_same_steps(monkeypatch):
    first = steps_of()
    monkeypatch.setattr(DistillationModule, "global_rank", 1)
    assert steps_of() == first
    assert len({len(steps) for steps in first}) > 1


def test_the_last_step_learns_from_what_the_steps_before_it_made():
    student, generator = mlp(seed=1), torch.Generator().manual_seed(0)
    z = [torch.randn(5, 2, generator=generator) for _ in range(3)]
    x = simulate(student, z, LEVELS, None, True)
    sigma = [torch.full((5,), level) for level in LEVELS]
    with torch.no_grad():
        first = student(LEVELS[0] * z[0], sigma[0])
        second = student(first + LEVELS[1] * z[1], sigma[1])
    expected = student(second + LEVELS[2] * z[2], sigma[2])
    assert torch.equal(x, expected)
    for found, truth in zip(
        *(torch.autograd.grad(value.square().sum(), list(student.parameters())) for value in (x, expected)), strict=True
    ):
        assert torch.equal(found, truth)


@pytest.mark.parametrize("levels", [(), (0.8, 0.3)])
def test_the_noise_of_the_first_step_is_that_of_a_one_step_student(levels):
    module = distillation(renoise_levels=levels)
    batch = next(iter(ring().train_dataloader()))
    turn = next(t for t in range(99) if drawn_steps(0, t, 1 + len(levels)) == 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationModule, "global_step", turn)
        generated = module._generate(batch, next(module.micro_batches(32)), True)
        z, again = (module.noise_source() for _ in range(2))
    latents = torch.randn(32, 2, generator=z)
    assert torch.equal(generated.x, module.student(2.0 * latents, torch.full((32,), 2.0)))
    assert torch.equal(generated.sigma, module.noise_levels.sample(32, z, module.device))
    assert torch.equal(generated.x_t, generated.x + generated.sigma[:, None] * torch.randn(32, 2, generator=z))
    assert torch.equal(latents, torch.randn(32, 2, generator=again))


def test_a_run_produces_a_model_of_as_many_evaluations_and_predicts_with_it():
    module, data = learning_by(SiD(), renoise_levels=LEVELS[1:], ema_decay=0.0), ring()
    before = weights(module)
    run = fit(module, 6, data)
    assert moved(before, module, "student")
    model = module.generative_model()
    assert model.evaluations == 3
    assert model.sigmas.tolist() == list(LEVELS)
    predicted = torch.cat(run.predict(module, datamodule=data))
    assert predicted.shape == data.held_out_samples.copied().x.shape
    assert predicted.isfinite().all()


def test_a_one_step_student_shows_its_latents_to_who_asks_and_one_of_several_steps_has_none_to_show():
    asking = Asking(objective := MongeRegularised(DiffInstruct(), 0.1))
    fit(module := learning_by(objective, student_optimizer=functools.partial(adam, lr=0.0)), 1)
    at = asking.seen[0]
    assert torch.equal(at.x, module.student(2.0 * at.latents, torch.full((32,), 2.0)))
    asking = Asking(objective := DiffInstruct())
    fit(learning_by(objective), 1)
    assert asking.seen[0].latents is None
    with pytest.raises(ValueError, match="MongeRegularised"):
        learning_by(MongeRegularised(DiffInstruct(), 0.1), renoise_levels=LEVELS[1:])


@pytest.mark.parametrize("levels", [[2.0], [3.0], [0.5, 0.5], [0.5, 0.0], [0.5, -0.1], [float("nan")]])
def test_levels_that_do_not_fall_from_the_first_are_refused(levels):
    with pytest.raises(ValueError, match="renoise_levels"):
        distillation(renoise_levels=levels)

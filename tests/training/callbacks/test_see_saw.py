"""When a teacher is compared with the best linear denoiser, with what, and that looking changes nothing."""

import pytest
import torch
from test_callbacks import Memory
from tiny_runs import GivenData, distillation, exact, fit, mlp, ring, teacher_training, trainer, weights

from fdistill.core.random import generator_for
from fdistill.evaluation.see_saw import LinearDenoiser, see_saw
from fdistill.theory.noise_levels import LogUniform
from fdistill.training.callbacks import SeeSaw
from fdistill.training.callbacks.measured import Listener

GAUSSIAN = {"student": mlp(), "fake_score": mlp(), "sigma_data": 1.0, "discriminator": "sample"}


def gaussian_data(n=512):
    return GivenData(torch.randn(n, 2, generator=generator_for(0)))


def run(module, turns, callback, folder, data=None, **changes):
    memory = Memory()
    memory.take_default(str(folder))
    fit(module, turns, data or ring(), callbacks=[callback], logger=memory, log_every_n_steps=1, **changes)
    return memory


def columns(memory, turn, name="excess", bins=10):
    return torch.tensor([memory.of(f"see_saw/{name}/{i}")[turn] for i in range(bins)], dtype=torch.float64)


def test_the_exact_teacher_of_gaussian_data_has_no_excess_at_any_level_of_its_sampling_grid(tmp_path):
    module = distillation(exact([[0.0, 0.0]], [1.0]), **GAUSSIAN)
    memory = run(module, 3, SeeSaw(), tmp_path, gaussian_data())
    assert columns(memory, 1).abs().max() < 3 * 5 / 512  # the linear one has fitted 5 numbers to the very same samples
    steps = columns(memory, 1, "sigma").log().diff()
    assert torch.allclose(steps, torch.full_like(steps, torch.log(torch.tensor(80 / 0.002)) / 10), rtol=1e-3)


def test_a_frozen_teacher_is_looked_at_once_a_run_and_not_again_after_a_resume(tmp_path):
    module = distillation()
    assert list(run(module, 3, SeeSaw(num_samples=20), tmp_path).of("see_saw/excess/0")) == [1]
    module.trainer.save_checkpoint(tmp_path / "three.ckpt")
    again = run(distillation(), 5, SeeSaw(num_samples=20), tmp_path, resume_from=tmp_path / "three.ckpt")
    assert again.lines
    assert again.of("see_saw/excess/0") == {}
    assert [path.name for path in (tmp_path / "diagnosis").iterdir()] == ["see_saw_0000001.png"]


def test_a_teacher_that_trains_is_looked_at_on_schedule_as_its_average_told_the_class(tmp_path):
    module, data, levels = teacher_training(mlp(num_classes=2).network), ring(), LogUniform(0.1, 10.0)
    callback = SeeSaw(every_n_turns=2, num_samples=50, num_bins=3, noise_levels=levels)
    memory = run(module, 5, callback, tmp_path, data)
    assert list(memory.of("see_saw/excess/2")) == [2, 4]
    assert sorted(p.name for p in (tmp_path / "diagnosis").iterdir()) == ["see_saw_0000002.png", "see_saw_0000004.png"]

    module = teacher_training(mlp(num_classes=2).network)
    fit(module, 4, data)
    train, held_out = data.train_samples.copied(), data.held_out_samples.copied()
    chosen = torch.randperm(64, generator=generator_for(0))[:50]
    expected = see_saw(
        module.ema.average.eval(),
        LinearDenoiser.fit(train.x, generator_for(0, 2), train.classes, 2),
        held_out.x[chosen],
        held_out.classes[chosen],
        levels,
        generator_for(0, 1),
        num_bins=3,
    )
    torch.testing.assert_close(columns(memory, 4, bins=3), expected.excess)


@pytest.mark.usefixtures("drawn")
def test_an_exact_denoiser_beside_the_teacher_gives_the_error_of_eps(tmp_path):
    oracle = exact([[0.0, 0.0]], [1.0])
    memory = run(distillation(oracle, **GAUSSIAN), 1, SeeSaw(exact=oracle), tmp_path, gaussian_data())
    assert columns(memory, 1, "eps_error").max() == 0
    memory = run(distillation(), 1, SeeSaw(exact=oracle), tmp_path, gaussian_data())
    assert columns(memory, 1, "eps_error").min() > 0
    assert (tmp_path / "diagnosis" / "see_saw_0000001.png").read_bytes().startswith(b"\x89PNG")


class Ear(Listener):
    """Keeps the turns in which it heard of which numbers."""

    def __init__(self):
        self.heard = []

    def on_measured(self, trainer, pl_module, numbers):
        self.heard.append((trainer.global_step, numbers))


def test_other_callbacks_hear_what_it_measured(tmp_path):
    ear = Ear()
    fit(distillation(), 2, callbacks=[SeeSaw(num_samples=20, num_bins=2), ear], folder=tmp_path)
    ((turn, numbers),) = ear.heard
    assert turn == 1
    assert numbers.keys() == {f"see_saw/{name}/{i}" for name in ("excess", "sigma") for i in range(2)}


def test_looking_leaves_the_training_as_it_is(tmp_path):
    plain, watched = teacher_training(), teacher_training()
    fit(plain, 4)
    run(watched, 4, SeeSaw(every_n_turns=1, num_samples=20), tmp_path)
    before, after = weights(plain), weights(watched)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()


@pytest.mark.parametrize(
    ("settings", "got"),
    [({"every_n_turns": 0}, "0, 1000, 10"), ({"num_samples": 1}, "1000, 1, 10"), ({"num_bins": 0}, "1000, 1000, 0")],
)
def test_its_numbers_are_positive(settings, got):
    with pytest.raises(ValueError, match=f"got {got}"):
        SeeSaw(**settings)


def test_held_out_data_of_one_sample_is_refused_in_one_line(tmp_path):
    class One(GivenData):
        def load_splits(self):
            train, _ = super().load_splits()
            return train, type(train)(self.x[:1], torch.zeros(1))

    with pytest.raises(ValueError, match="samples"):
        trainer(1, tmp_path, [SeeSaw(every_n_turns=1)]).fit(teacher_training(), datamodule=One(gaussian_data().x))

"""When checkpoints, pictures and distances are made, and that the best checkpoint is the best."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import distillation, fit, ring, teacher_training

from fdistill.evaluation.metrics import frechet_distance
from fdistill.io.load import load_model
from fdistill.models.condition import Entry
from fdistill.models.denoiser import Denoiser
from fdistill.training import NonFiniteError
from fdistill.training.callbacks import (
    DiversityCallback,
    LastCheckpoint,
    MongeGap,
    SampleGrid,
    StudentDistance,
    TurnProgressBar,
)
from fdistill.training.loggers import JsonlLogger

DISTANCE = "metric/pixel_frechet_distance"


class Memory(JsonlLogger):
    """Keeps what is logged, and writes nothing."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, {k: v if isinstance(v, str) else float(v) for k, v in metrics.items()}))

    def continue_from(self, turn):
        pass

    def of(self, name):
        return {step: metrics[name] for step, metrics in self.lines if name in metrics}


def best(folder):
    return ModelCheckpoint(
        dirpath=folder, filename="best", monitor=DISTANCE, every_n_train_steps=2, enable_version_counter=False
    )


def test_the_best_checkpoint_is_the_one_of_the_smallest_distance(tmp_path):
    module, data, memory = distillation(ema_decay=0.0), ring(), Memory()
    callbacks = [StudentDistance(every_n_turns=2, num_samples=200), best(tmp_path)]
    fit(module, 14, data, callbacks=callbacks, logger=memory, enable_checkpointing=True)
    distances = memory.of(DISTANCE)
    assert list(distances) == [2, 4, 6, 8, 10, 12, 14]
    smallest = min(distances, key=distances.get)
    assert smallest != 14, "the last is the best: this run cannot tell the two apart"

    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == smallest
    model, real = load_model(tmp_path / "best.ckpt"), data.train_samples.copied()
    again = frechet_distance(model.sample(model.noise(200, seed=1)), real.x)
    assert float(again) == pytest.approx(distances[smallest], rel=1e-5)


def test_the_distance_gives_every_class_its_share_of_the_training_data():
    module, data, memory = teacher_training(num_steps=2), ring(), Memory()
    fit(module, 4, data, callbacks=[StudentDistance(every_n_turns=4, num_samples=700)], logger=memory)
    assert memory.of(DISTANCE)[4] > 0  # more samples than the split has: its labels are used again


def turns_saved(callback):
    """The turns after which a LastCheckpoint wrote its file, in order."""
    saved = []
    write = callback._save_checkpoint
    callback._save_checkpoint = lambda trainer, path: (saved.append(trainer.global_step), write(trainer, path))[1]
    return saved


def test_the_last_checkpoint_is_written_on_schedule_and_at_the_end_also_after_a_resume(tmp_path):
    first = LastCheckpoint(every_n_turns=3)
    saved = turns_saved(first)
    fit(distillation(), 7, callbacks=[first], folder=tmp_path, enable_checkpointing=True)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert saved == [3, 6, 7]
    assert torch.load(path, weights_only=True)["global_step"] == 7

    second = LastCheckpoint(every_n_turns=3)
    saved = turns_saved(second)
    continued = distillation()
    fit(continued, 10, callbacks=[second], folder=tmp_path, enable_checkpointing=True, resume_from="last")
    assert saved == [9, 10]
    assert torch.load(path, weights_only=True)["global_step"] == 10
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]

    fit(whole := distillation(), 10)
    assert all(torch.equal(a, dict(whole.named_parameters())[name]) for name, a in continued.named_parameters())


def test_the_last_checkpoint_is_written_once_where_the_end_is_on_schedule(tmp_path):
    callback = LastCheckpoint(every_n_turns=2)
    saved = turns_saved(callback)
    fit(distillation(), 4, callbacks=[callback], folder=tmp_path, enable_checkpointing=True)
    assert saved == [2, 4]


def test_a_failing_turn_leaves_the_last_good_checkpoint(tmp_path):
    class Break(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 5:
                next(module.student.parameters()).data.fill_(torch.nan)

    callbacks = [Break(), LastCheckpoint(every_n_turns=2)]
    with pytest.raises(NonFiniteError):
        fit(distillation(), 9, callbacks=callbacks, folder=tmp_path, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_last_and_best_live_side_by_side_and_both_resume(tmp_path):
    def callbacks():
        distance = StudentDistance(every_n_turns=2, num_samples=100)
        return [distance, LastCheckpoint(every_n_turns=2), best(tmp_path / "checkpoints")]

    fit(distillation(), 4, callbacks=callbacks(), folder=tmp_path, enable_checkpointing=True)
    made = callbacks()
    fit(distillation(), 8, callbacks=made, folder=tmp_path, enable_checkpointing=True, resume_from="last")
    assert {file.name for file in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert made[2].best_model_score is not None


@pytest.mark.parametrize(
    "build", [lambda: SampleGrid(every_n_turns=0), lambda: SampleGrid(num_samples=0), lambda: StudentDistance(0)]
)
def test_schedules_and_numbers_of_samples_are_positive(build):
    with pytest.raises(ValueError, match=r"got 0|got \d+ and 0|got \d+, 0"):
        build()


@pytest.mark.parametrize("callback", [DiversityCallback, MongeGap, StudentDistance])
def test_a_generator_of_prompts_is_refused_before_the_first_turn(monkeypatch, callback):
    monkeypatch.setattr(Denoiser, "takes", {"text": Entry((None, 4), torch.float32)})
    with pytest.raises(ValueError, match=rf"{callback.__name__} samples without prompts: .*text \(\[any, 4\]\).*Seed"):
        fit(distillation(), 1, callbacks=[callback()])


def test_the_progress_bar_counts_turns_up_to_max_steps_and_starts_where_a_run_continues(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            bar = trainer.progress_bar_callback.train_progress_bar
            seen.append((bar.total, bar.initial, bar.n, bar.desc))

    bar = {"enable_progress_bar": True}
    run = fit(distillation(), 4, callbacks=[TurnProgressBar(refresh_rate=1), Look()], **bar)
    assert seen == [(4, 0, n, "Distillation: ") for n in (1, 2, 3, 4)]
    run.save_checkpoint(tmp_path / "end.ckpt")

    class Killed(L.Callback):  # leaves a checkpoint of mid-epoch
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    fit(distillation(), 6, callbacks=[Killed()])
    for checkpoint in ("end.ckpt", "middle.ckpt"):
        seen.clear()
        callbacks = [TurnProgressBar(refresh_rate=1), Look()]
        fit(distillation(), 6, callbacks=callbacks, resume_from=tmp_path / checkpoint, **bar)
        assert seen == [(6, 4, n, "Distillation: ") for n in (5, 6)]

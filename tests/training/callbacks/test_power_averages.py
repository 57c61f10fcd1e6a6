"""Averages follow the generator's own updates, survive a resume bit for bit, and lie on disk as they were."""

import json

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit, mlp, ring, teacher_training, weights

from fdistill.io.checkpoints import CheckpointError
from fdistill.training.averaging.power_ema import Profile, gamma_of, kept_share
from fdistill.training.averaging.snapshots import FOLDER, Snapshots, drop_later, put_average, write_snapshot
from fdistill.training.callbacks import PowerAverages

BUILDS = {
    "teacher": (lambda: teacher_training(mlp(num_classes=2).network), "denoiser"),
    "fused": (distillation, "student"),
    "alternating": (lambda: distillation(turn="alternating", fake_updates_per_student=2), "student"),
    "warm-up": (
        lambda: distillation(turn="alternating", fake_updates_per_student=1, fake_score_warmup=3),
        "student",
    ),
}


class Trajectory(L.Callback):
    """Remembers the raw network after each of its updates."""

    def __init__(self, network):
        self.network, self.rows = network, []

    def on_train_batch_end(self, trainer, module, *_):
        if module.updates > len(self.rows):
            values = getattr(module, self.network).parameters()
            self.rows.append(torch.cat([p.detach().flatten().double() for p in values]))


def run(build, turns, folder, callback=None, **changes):
    module = build()
    fit(module, turns, folder=folder, callbacks=[callback or PowerAverages(every_n_updates=2)], **changes)
    return module


def stored(folder):
    return sorted(int(file.stem) for file in (folder / FOLDER).iterdir())


def flat(average, network):
    return torch.cat([average[name].flatten().double() for name, _ in network.named_parameters()])


def files(folder):
    return {file.name: file.read_bytes() for file in (folder / FOLDER).iterdir()}


@pytest.mark.parametrize("kind", BUILDS)
def test_snapshots_are_averages_of_the_generators_own_updates(kind, tmp_path):
    build, network = BUILDS[kind]
    trajectory, averages = Trajectory(network), PowerAverages(every_n_updates=2)
    module = build()
    fit(module, 12, folder=tmp_path, callbacks=[averages, trajectory])
    updates = len(trajectory.rows)
    assert updates == module.updates
    assert stored(tmp_path) == sorted({*range(2, updates + 1, 2), updates})
    snapshots = Snapshots(tmp_path / FOLDER)
    assert snapshots.updates == updates
    for length in (0.05, 0.1):
        expected = torch.zeros_like(trajectory.rows[0])
        for t, row in enumerate(trajectory.rows, start=1):
            share = kept_share(t, gamma_of(length))
            expected = share * expected + (1 - share) * row
        found = flat(snapshots.average(snapshots.combination(length)), getattr(module, network))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_run_is_the_one_without_averages(tmp_path):
    torch.manual_seed(0)
    fit(plain := distillation(), 4)
    torch.manual_seed(0)
    tracked = run(distillation, 4, tmp_path)
    assert all(torch.equal(value, weights(tracked)[name]) for name, value in weights(plain).items())


@pytest.mark.parametrize("kind", ["teacher", "alternating"])
def test_five_turns_and_seven_more_have_the_snapshots_of_twelve(kind, tmp_path):
    build, _ = BUILDS[kind]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(build, 12, whole)
    module = build()
    fit(module, 5, folder=parts, callbacks=[PowerAverages(every_n_updates=2)]).save_checkpoint(parts / "half.ckpt")
    run(build, 12, parts, resume_from=parts / "half.ckpt")
    assert files(whole).items() <= files(parts).items()  # the end of the first part is one more
    assert len(torch.load(parts / "half.ckpt", weights_only=True)["callbacks"].keys() - {"Continuation"}) == 1


def test_snapshots_of_a_branch_that_is_left_are_removed(tmp_path):
    build, _ = BUILDS["teacher"]
    trainer = fit(build(), 5, folder=tmp_path, callbacks=[PowerAverages(every_n_updates=2)])
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    run(build, 11, tmp_path, resume_from=tmp_path / "five.ckpt")
    assert stored(tmp_path) == [2, 4, 5, 6, 8, 10, 11]
    before = files(tmp_path)
    run(build, 8, tmp_path, PowerAverages(every_n_updates=4), resume_from=tmp_path / "five.ckpt")
    assert stored(tmp_path) == [2, 4, 5, 8]
    assert files(tmp_path).items() <= before.items()


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path):
    run(BUILDS["teacher"][0], 8, tmp_path)
    run(BUILDS["teacher"][0], 3, tmp_path)
    assert stored(tmp_path) == [2, 3]


def test_averages_that_begin_late_are_of_the_updates_from_there_on(tmp_path):
    build, _ = BUILDS["teacher"]
    fit(build(), 4).save_checkpoint(tmp_path / "four.ckpt")
    with pytest.warns(UserWarning, match="PowerAverages"):
        module = run(build, 10, tmp_path, PowerAverages(every_n_updates=1), resume_from=tmp_path / "four.ckpt")
    assert stored(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert module.updates == 10


def test_checkpoints_of_other_lengths_are_refused(tmp_path):
    build, _ = BUILDS["teacher"]
    trainer = fit(build(), 2, folder=tmp_path, callbacks=[PowerAverages()])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="lengths"):
        run(build, 4, tmp_path, PowerAverages(lengths=(0.2,)), resume_from=tmp_path / "a.ckpt")


@pytest.mark.parametrize(("number", "expected"), [(3, [4, 8, 10]), (100, list(range(1, 11))), (1, [10])])
def test_snapshots_are_spread_over_the_run(number, expected, tmp_path):
    run(BUILDS["teacher"][0], 10, tmp_path, PowerAverages(snapshots=number))
    assert stored(tmp_path) == expected


def test_a_run_without_an_end_needs_a_distance():
    with pytest.raises(ValueError, match="every_n_updates"):
        fit(teacher_training(), -1, callbacks=[PowerAverages()])


@pytest.mark.parametrize(
    "settings",
    [
        {"snapshots": 0},
        {"every_n_updates": 0},
        {"lengths": ()},
        {"lengths": (0.05, 0.05)},
        {"lengths": (0.4,)},
        {"storage": "int8"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        PowerAverages(**settings)


def test_float16_halves_the_disk_and_rounds(tmp_path):
    wide, narrow = {"network.weight": torch.linspace(-3, 3, 10_001)}, {}
    for storage in ("float32", "float16"):
        path = write_snapshot(tmp_path / storage, {0.1: wide}, 7, storage)
        snapshots = Snapshots(tmp_path / storage)
        narrow[storage] = snapshots.average(snapshots.combination(0.1))["network.weight"], path.stat().st_size
        assert snapshots.storage == storage
        assert snapshots.profiles == [Profile(0.1, 7)]
    assert torch.equal(narrow["float32"][0], wide["network.weight"])
    torch.testing.assert_close(narrow["float16"][0], wide["network.weight"], rtol=2**-11, atol=2**-25)
    assert narrow["float16"][1] / narrow["float32"][1] == pytest.approx(0.5, abs=0.01)


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="update"):
        write_snapshot(tmp_path, {0.1: {"w": torch.tensor([1e6])}}, 3, "float16")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_snapshots_or_with_a_broken_one_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="snapshots"):
        Snapshots(tmp_path / "nowhere")
    write_snapshot(tmp_path, {0.1: {"w": torch.zeros(2)}}, 3)
    (tmp_path / "000000005.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="damaged"):
        Snapshots(tmp_path)
    drop_later(tmp_path, 4)
    assert Snapshots(tmp_path).updates == 3


def test_snapshots_of_two_networks_are_not_mixed(tmp_path):
    write_snapshot(tmp_path, {0.05: {"w": torch.zeros(2)}, 0.1: {"w": torch.zeros(2)}}, 5)
    write_snapshot(tmp_path, {0.05: {"w": torch.zeros(3)}, 0.1: {"w": torch.zeros(3)}}, 10)
    snapshots = Snapshots(tmp_path)
    with pytest.raises(CheckpointError, match="snapshots"):
        snapshots.average(snapshots.combination(0.1))


def test_an_average_goes_into_the_model_that_it_is_of(tmp_path):
    module = run(BUILDS["teacher"][0], 4, tmp_path)
    snapshots, model = Snapshots(tmp_path / FOLDER), module.generative_model()
    average = snapshots.average(snapshots.combination(0.08))
    put_average(model, average, tmp_path)
    assert all(torch.equal(p, average[name]) for name, p in model.denoiser.named_parameters())
    with pytest.raises(CheckpointError, match="checkpoint"):
        put_average(distillation().generative_model(), average, tmp_path)


def test_a_checkpoint_holds_plain_values_only(tmp_path):
    trainer = fit(teacher_training(), 2, ring(), folder=tmp_path, callbacks=[PowerAverages()])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["PowerAverages"]
    assert json.dumps({name: value for name, value in state.items() if name != "averages"})
    assert {value.dtype for average in state["averages"] for value in average} == {torch.float32}

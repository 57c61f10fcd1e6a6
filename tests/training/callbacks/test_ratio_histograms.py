"""What the last student updates saw of the density ratio, per noise level: the numbers, their schedule, the window."""

import math

import lightning.pytorch as L
import pytest
import torch
from test_callbacks import Memory
from tiny_runs import distillation, fit, ring, teacher_training, weights

from fdistill.evaluation.see_saw import ratio_by_bin
from fdistill.theory.divergences import ForwardKL, JensenShannon, ReverseKL
from fdistill.training.callbacks import RatioHistograms

ALTERNATING = {"turn": "alternating", "fake_updates_per_student": 2}


class Witness(L.Callback):
    """Keeps what the module shows after every turn."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(module.last_ratio)


def run(turns, callback, folder, module=None, **changes):
    module, memory, witness = module or distillation(), Memory(), Witness()
    memory.take_default(str(folder))
    data = changes.pop("data", None) or ring()
    fit(module, turns, data, callbacks=[callback, witness], logger=memory, **changes)
    return module, memory, witness


def number(memory, name, turn, bins=10):
    return torch.tensor([memory.of(f"{name}/{i}").get(turn, math.nan) for i in range(bins)], dtype=torch.float64)


def test_the_module_shows_the_ratio_of_its_last_student_update_until_the_next(tmp_path):
    _, _, witness = run(9, RatioHistograms(), tmp_path, distillation(**ALTERNATING))
    assert witness.seen[:2] == [None, None]
    assert witness.seen[2] is witness.seen[3] is witness.seen[4]
    assert witness.seen[5] is not witness.seen[4]
    sigma, log_ratio, weight = witness.seen[8]
    assert sigma.shape == log_ratio.shape == weight.shape == (32,)
    assert torch.equal(weight, JensenShannon().weight(log_ratio))
    assert not any(seen.requires_grad for seen in (sigma, log_ratio, weight))


def test_where_no_ratio_is_needed_there_is_none_and_nothing_is_logged(tmp_path):
    module = distillation(divergence=ReverseKL(), adversarial_weight=0.3)
    _, memory, witness = run(4, RatioHistograms(every_n_updates=1), tmp_path, module)
    assert witness.seen == [None] * 4
    assert not any(name.startswith(("ratio_bin", "weight_bin")) for _, numbers in memory.lines for name in numbers)
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_those_of_the_samples_in_the_window_by_bin_of_the_estimator(tmp_path):
    module, memory, witness = run(5, RatioHistograms(every_n_updates=5, window=3), tmp_path)
    sigma, log_ratio, weight = (torch.cat(parts) for parts in zip(*witness.seen[2:], strict=True))
    expected = ratio_by_bin(module.ratio.bin_of(sigma), log_ratio, weight, 10)
    names = ("ratio_bin/log_mean", "weight_bin/mean", "weight_bin/ess")
    for name, values in zip(names, expected, strict=True):
        torch.testing.assert_close(number(memory, name, 5), values)


def test_with_averages_of_one_update_the_mean_ratio_of_a_bin_is_one_and_no_log_mean_positive(tmp_path):
    """E_q[p/q] = 1 in every bin, hence E_q[ln p/q] <= 0 by Jensen's inequality."""
    module = distillation(ratio_decay=0.0, ratio_bins=4)
    _, memory, witness = run(6, RatioHistograms(every_n_updates=1, window=1), tmp_path, module)
    for turn in range(1, 7):
        assert number(memory, "ratio_bin/log_mean", turn, 4).nan_to_num(0).max() < 1e-6
    sigma, log_ratio, _ = witness.seen[-1]
    bins = module.ratio.bin_of(sigma)
    assert all(float(log_ratio[bins == i].exp().mean()) == pytest.approx(1, rel=1e-5) for i in bins.unique())


def test_the_schedule_counts_student_updates(tmp_path):
    module = distillation(fake_score_warmup=1, **ALTERNATING)
    _, memory, _ = run(13, RatioHistograms(every_n_updates=2), tmp_path, module)
    turns = {turn for i in range(10) for turn in memory.of(f"ratio_bin/log_mean/{i}")}
    assert turns == {7, 13}
    pictures = sorted(path.name for path in (tmp_path / "diagnosis").iterdir())
    assert pictures == ["ratio_0000007.png", "ratio_0000013.png"]


@pytest.mark.usefixtures("drawn")
def test_a_bin_without_samples_has_no_numbers_and_the_picture_is_drawn_all_the_same(tmp_path):
    module, data = distillation(divergence=ForwardKL()), ring(batch_size=3)
    _, memory, witness = run(1, RatioHistograms(every_n_updates=1), tmp_path, module, data=data)
    filled = set(module.ratio.bin_of(witness.seen[0][0]).tolist())
    assert {i for i in range(10) if memory.of(f"weight_bin/ess/{i}")} == filled
    assert len(filled) <= 3
    assert (tmp_path / "diagnosis" / "ratio_0000001.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_begins_with_an_empty_window(tmp_path):
    first = fit(distillation(), 3, ring(), callbacks=[RatioHistograms()])
    first.save_checkpoint(tmp_path / "three.ckpt")
    callback = RatioHistograms(every_n_updates=5, window=50)
    module, memory, witness = run(5, callback, tmp_path, resume_from=tmp_path / "three.ckpt")
    sigma = torch.cat([seen[0] for seen in witness.seen])
    assert len(sigma) == 64
    filled = module.ratio.bin_of(sigma).unique().tolist()
    assert [i for i in range(10) if memory.of(f"weight_bin/ess/{i}")] == filled


def test_histograms_hold_all_samples_of_the_window(tmp_path, monkeypatch):
    logged = {}
    monkeypatch.setattr(
        "fdistill.training.callbacks.ratio_histograms.log_histogram",
        lambda loggers, name, values, step: logged.update({(name, step): values}),
    )
    _, _, witness = run(4, RatioHistograms(every_n_updates=4, window=2), tmp_path)
    assert logged.keys() == {("ratio/histogram", 4), ("weight/histogram", 4)}
    assert torch.equal(logged["ratio/histogram", 4], torch.cat([seen[1] for seen in witness.seen[2:]]))
    assert torch.equal(logged["weight/histogram", 4], torch.cat([seen[2] for seen in witness.seen[2:]]))


def test_looking_leaves_the_training_as_it_is(tmp_path):
    plain = distillation()
    fit(plain, 4)
    watched, _, _ = run(4, RatioHistograms(every_n_updates=1), tmp_path)
    before, after = weights(plain), weights(watched)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()


def test_teacher_training_has_no_ratio_to_look_at():
    with pytest.raises(ValueError, match="TeacherModule"):
        fit(teacher_training(), 1, callbacks=[RatioHistograms()])


@pytest.mark.parametrize(("settings", "got"), [({"every_n_updates": 0}, "0 and 50"), ({"window": 0}, "200 and 0")])
def test_its_numbers_are_positive(settings, got):
    with pytest.raises(ValueError, match=f"got {got}"):
        RatioHistograms(**settings)

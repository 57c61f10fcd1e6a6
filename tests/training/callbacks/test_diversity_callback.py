"""What a run measures of itself, and the alarm that reads it."""

import copy
import json

import pytest
import torch
from test_callbacks import Memory
from tiny_runs import GivenData, adam, distillation, exact, fit, mlp, ring, teacher_training, trainer, weights

from fdistill.evaluation.comparison import TrainingComparison
from fdistill.evaluation.features import PixelFeatures
from fdistill.evaluation.metrics import (
    FeatureMetric,
    FrechetDistance,
    PrecisionRecall,
    VendiScore,
    precision_recall,
    standard_metrics,
    suite,
)
from fdistill.evaluation.report.intervals import intervals
from fdistill.evaluation.report.rows import measure
from fdistill.training.callbacks import CollapseCallback, DiversityCallback
from fdistill.training.callbacks import diversity as diversity_file
from fdistill.training.loggers import JsonlLogger

STILL = {"student_optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
FEW = {"frechet_distance": FrechetDistance(), "neighbours": PrecisionRecall()}


def diversity(every=2, **changes):
    return DiversityCallback(every_n_updates=every, num_samples=100, **{"metrics": copy.deepcopy(FEW)} | changes)


def run(turns=4, module=None, **changes):
    module, memory = module or distillation(), Memory()
    trainer = fit(module, turns, logger=memory, **changes)
    return module, memory, trainer


def test_student_teacher_and_floor_are_logged_at_every_measurement():
    _, memory, _ = run(callbacks=[diversity()])
    for name in ("frechet_distance", "precision", "recall"):
        for side in ("metric", "metric_teacher", "metric_floor"):
            assert list(memory.of(f"{side}/{name}")) == [2, 4]
        assert len(set(memory.of(f"metric_teacher/{name}").values())) == 1
    assert all(0 < share < 1 for share in memory.of("perf/metrics_share").values())


def test_the_standard_metrics_have_the_names_of_the_dashboard():
    _, memory, _ = run(2, callbacks=[diversity(metrics=None)])
    logged = {name for _, values in memory.lines for name in values if name.startswith("metric/")}
    names = (
        "frechet_distance kernel_distance precision recall density coverage vendi_score vendi_ratio tid anchored_tid "
    )
    names += "count_ratio mode_coverage memorized_fraction paired_distance local_coverage"
    assert {f"metric/{name}" for name in names.split()} <= logged


def test_a_student_that_does_not_move_is_measured_the_same_every_time():
    _, memory, _ = run(6, distillation(**STILL), callbacks=[diversity()])
    assert len(set(memory.of("metric/frechet_distance").values())) == 1


def test_a_measurement_is_the_function_of_the_same_samples():
    data, module = ring(), distillation(**STILL)
    callback = diversity()
    _, memory, _ = run(2, module, data=data, callbacks=[callback])
    probe = callback.comparison
    model = module.generative_model()
    samples = probe.extractor.extract(model.sample(model.noise(100, 0)))
    assert memory.of("metric/recall")[2] == float(precision_recall(samples, probe.reference.features).recall)


def test_measuring_leaves_the_training_as_it_is():
    plain, _, _ = run(5)
    watched, _, _ = run(5, callbacks=[diversity(metrics=None), CollapseCallback(num_splits=2)])
    before, after = weights(plain), weights(watched)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()


def test_the_schedule_counts_student_updates():
    module = distillation(turn="alternating", fake_updates_per_student=2, fake_score_warmup=1)
    _, memory, _ = run(14, module, callbacks=[diversity(every=2)])
    assert list(memory.of("metric/recall")) == [7, 13]
    _, memory, _ = run(5, teacher_training(num_steps=2), callbacks=[diversity(every=2)])
    assert list(memory.of("metric/recall")) == [2, 4]
    assert memory.of("metric_teacher/recall") == {}


def test_a_resumed_run_measures_on_and_adds_up_its_cost(tmp_path):
    _, _, trainer = run(3, callbacks=[first := diversity()])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = diversity()
    _, memory, _ = run(5, callbacks=[again], resume_from=str(tmp_path / "last.ckpt"))
    assert list(memory.of("metric/recall")) == [4]
    assert again.state_dict()["spent"] > first.state_dict()["spent"]


def test_the_reference_and_the_floor_are_disjoint_halves_and_classes_are_asked_as_the_reference_has_them():
    x = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    probe = TrainingComparison(GivenData(x, num_classes=3), PixelFeatures(), FEW, num_samples=1000, seed=0)
    assert probe.n == 45
    both = torch.cat([probe.reference.features, probe.other_half.features])
    assert len(both.unique(dim=0)) == 90
    counts = [half.wanted.bincount(minlength=3) for half in (probe.reference, probe.other_half)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    rows = probe.draw(distillation(mlp(num_classes=3)).generative_model())
    assert torch.equal(rows.wanted, probe.labels)


class MeanDistance(FeatureMetric):
    """The example of docs/metrics.md."""

    def measure(self, generated, real):
        return (generated.double().mean(0) - real.double().mean(0)).norm()


def test_a_metric_is_added_to_runs_and_reports_in_one_line(monkeypatch):
    listed = suite.standard_metrics
    for module in (suite, diversity_file):
        monkeypatch.setattr(module, "standard_metrics", lambda n: {**listed(n), "mean_distance": MeanDistance()})
    callback = diversity(metrics=None)
    _, memory, _ = run(2, callbacks=[callback])
    reference, floor = callback.comparison.reference, callback.comparison.other_half
    distance = (floor.features.double().mean(0) - reference.features.double().mean(0)).norm()
    assert memory.of("metric_floor/mean_distance") == {2: distance}
    assert {*memory.of("metric/mean_distance"), *memory.of("metric_teacher/mean_distance")} == {2}
    row = measure(floor, reference)
    assert row["mean_distance"] == distance
    assert intervals(row, floor, reference, 0, 4, 0)["mean_distance"][1] > distance


def test_too_few_real_samples_and_metrics_of_one_name_are_refused():
    data = GivenData(torch.randn(30, 2))
    with pytest.raises(ValueError, match="samples"):
        TrainingComparison(data, PixelFeatures(), FEW, 100, 0)
    with pytest.raises(ValueError, match="samples"):
        fit(distillation(), 1, data, callbacks=[DiversityCallback()])
    with pytest.raises(ValueError, match="datamodule"):
        trainer(1, callbacks=[DiversityCallback()]).fit(distillation(), data.train_dataloader())
    twice = {"a": PrecisionRecall(), "b": PrecisionRecall(k=5)}
    with pytest.raises(ValueError, match="one of each, got"):
        TrainingComparison(ring(), PixelFeatures(), twice, 100, 0).floor()
    undeclared = PrecisionRecall()
    undeclared.gives = ()
    with pytest.raises(ValueError, match="gives"):
        TrainingComparison(ring(), PixelFeatures(), {"a": undeclared}, 100, 0).floor()
    with pytest.raises(ValueError, match="positive numbers"):
        DiversityCallback(every_n_updates=0)


def test_the_teacher_is_left_out_on_request():
    _, memory, _ = run(2, callbacks=[diversity(teacher=False)])
    assert not any(name.startswith("metric_teacher/") for _, values in memory.lines for name in values)


def test_the_floor_counts_copies_among_held_out_samples():
    probe = TrainingComparison(ring(), PixelFeatures(), standard_metrics(2), 100, 0)
    assert probe.floor()["memorized_fraction"] < 0.5


def collapsed(**changes):
    """A student that makes one point."""
    student = mlp(initial_output=[1.45, 0.0])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1e-6)
    return distillation(
        exact([[2.0, 0.0], [-2.0, 0.0]], [0.1, 0.1]), student=student, fake_score=mlp(), **STILL | changes
    )


def alarmed(*callbacks, turns=8, logger=None, **changes):
    watch = {"metrics": {"vendi_ratio": VendiScore(relative=True), "neighbours": PrecisionRecall()}}
    module = collapsed(**changes)
    return fit(module, turns, callbacks=[diversity(1, **watch), *callbacks], logger=logger or False)


def test_a_collapsed_student_is_reported_in_words(tmp_path):
    with pytest.warns(UserWarning, match="student"):
        alarmed(CollapseCallback(num_splits=4), logger=JsonlLogger(str(tmp_path)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    alarms = {line["step"]: line["collapse/alarm"] for line in lines if "collapse/alarm" in line}
    assert alarms == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1}  # a quarter of the run is grace
    assert all(line["collapse/margin/recall"] < 0 for line in lines if "collapse/alarm" in line)
    reasons = [line["collapse/reason"] for line in lines if "collapse/reason" in line]
    assert "recall 0 is below" in reasons[0]
    assert len(reasons) == 6


@pytest.mark.filterwarnings("ignore:the student is collapsing")
def test_the_alarm_can_stop_the_run():
    assert alarmed(CollapseCallback(num_splits=4, action="stop", grace_updates=0)).global_step == 2


@pytest.mark.filterwarnings("ignore:the student is collapsing")
def test_the_alarm_can_lower_the_learning_rates_once():
    trainer = alarmed(
        CollapseCallback(num_splits=4, action="lower_learning_rate", factor=0.1), fake_score_optimizer=adam
    )
    assert [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups][1:] == pytest.approx(
        [1e-3, 1e-3]
    )


@pytest.mark.filterwarnings("ignore:the student is collapsing")
def test_the_alarm_remembers_over_a_resume(tmp_path):
    first = CollapseCallback(num_splits=4, grace_updates=0, patience=3)
    alarmed(first, turns=2).save_checkpoint(tmp_path / "last.ckpt")
    again = CollapseCallback(num_splits=4, grace_updates=0, patience=3, action="stop")
    watch = {"metrics": {"neighbours": PrecisionRecall()}}
    trainer = fit(collapsed(), 9, callbacks=[diversity(1, **watch), again], resume_from=str(tmp_path / "last.ckpt"))
    assert trainer.global_step == 3


def test_the_alarm_needs_measurements_and_possible_settings():
    with pytest.raises(ValueError, match="DiversityCallback"):
        fit(distillation(), 1, callbacks=[CollapseCallback()])
    for wrong in ({"tolerance": {"fid": 1.0}}, {"action": "panic"}, {"patience": 0}, {"factor": 2.0}):
        with pytest.raises(ValueError, match="CollapseCallback"):
            CollapseCallback(**wrong)

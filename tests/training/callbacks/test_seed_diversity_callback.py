"""The seed's share in the picture while a run trains: what is logged, when, and that looking changes nothing."""

import pytest
import torch
from test_callbacks import Memory
from tiny_runs import distillation, fit, mlp, teacher_training, weights

from fdistill.data import LatentsOnly
from fdistill.evaluation.features import PixelFeatures
from fdistill.evaluation.metrics import condition_diversity
from fdistill.objectives import DiffInstruct
from fdistill.training.callbacks import SeedDiversity


def looking(**changes):
    arguments = {"every_n_updates": 2, "seeds": 8, "teacher_draws": 2, "spaces": {"points": PixelFeatures()}}
    return SeedDiversity(**arguments | changes)


def run(turns=4, module=None, **changes):
    module, memory = module or distillation(mlp(num_classes=2)), Memory()
    trainer = fit(module, turns, logger=memory, **changes)
    return module, memory, trainer


def test_numbers_of_student_and_teacher_are_logged_on_schedule():
    callback = looking()
    _, memory, _ = run(callbacks=[callback])
    for name in ("vendi_ratio_points", "similarity_points", "teacher_similarity_points", "collapsed_share", "alarm"):
        assert list(memory.of(f"seeds/{name}")) == [2, 4]
    assert len(set(memory.of("seeds/teacher_vendi_points").values())) == 1
    assert callback.probe.names == ["class 0", "class 1"]


def test_the_similarity_is_that_of_the_students_own_samples():
    module, callback = (
        distillation(mlp(num_classes=2), student_optimizer=lambda p: torch.optim.SGD(p, lr=0.0)),
        looking(),
    )
    _, memory, _ = run(2, module, callbacks=[callback])
    pictures = callback.probe.pictures(module.generative_model(), 0)
    features = callback.probe.spaces["points"].extract(pictures).unflatten(0, (2, 8))
    expected = float(condition_diversity(features).similarity.mean())
    assert memory.of("seeds/similarity_points")[2] == pytest.approx(expected, rel=1e-5)


def test_looking_leaves_the_training_as_it_is():
    plain, watched = run(4)[0], run(4, callbacks=[looking()])[0]
    before, after = weights(plain), weights(watched)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()


def test_a_resumed_run_remembers_what_the_alarm_has_seen(tmp_path):
    callback = looking(grace_updates=0)
    _, _, trainer = run(3, callbacks=[callback])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = looking(grace_updates=0)
    _, memory, _ = run(5, callbacks=[again], resume_from=str(tmp_path / "last.ckpt"))
    assert list(memory.of("seeds/alarm")) == [4]
    assert callback.state_dict()["alarm"]["armed"] is True
    assert again.state_dict()["alarm"]["armed"] is True


def test_runs_without_a_teacher_and_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="teacher"):
        fit(teacher_training(), 1, callbacks=[looking()])
    with pytest.raises(ValueError, match="at least 2"):
        SeedDiversity(seeds=1)


def test_without_real_data_features_are_prepared_on_the_teachers_pictures():
    callback = looking(spaces=None)
    module = distillation(mlp(num_classes=2), DiffInstruct())
    _, memory, _ = run(2, module, data=LatentsOnly([2], 2, batch_size=8), callbacks=[callback])
    assert list(memory.of("seeds/vendi_ratio_features")) == [2]
    assert callback.probe.spaces["features"].sample_shape == (2,)

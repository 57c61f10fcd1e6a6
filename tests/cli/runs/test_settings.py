"""What a run is may not change when it continues; how it is trained may."""

import pytest

from fdistill.cli.runs import changes, check_kept, flat_settings

RUN = {
    "seed_everything": 0,
    "model": {
        "class_path": "DistillationModule",
        "init_args": {
            "teacher": "a/last.ckpt",
            "sigma_init": 5.0,
            "student_optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "betas": [0.5, 0.9]}},
            "objective": {"class_path": "FDistill", "init_args": {"divergence": {"class_path": "ForwardKL"}}},
        },
    },
    "data": {"class_path": "ImageFolder", "init_args": {"folder": "images", "num_workers": 0}},
}


def altered(**values):
    """The changes of some settings by their full names, dots written as __."""
    before = flat_settings(RUN)
    return changes(before, before | {name.replace("__", "."): value for name, value in values.items()})


def test_a_class_is_the_value_of_its_name_and_its_arguments_lie_below():
    flat = flat_settings(RUN)
    assert flat["model.student_optimizer"] == "torch.optim.AdamW"
    assert flat["model.student_optimizer.betas"] == [0.5, 0.9]
    assert flat["model.objective.divergence"] == "ForwardKL"


@pytest.mark.parametrize(
    "change",
    [
        {"seed_everything": 1},
        {"model__sigma_init": 4.0},
        {"model__objective__divergence": "ReverseKL"},
        {"model__student_optimizer": "torch.optim.SGD"},
        {"data": "Digits"},
        {"model__teacher": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_run_is_refused_by_the_name_of_the_option(change):
    with pytest.raises(ValueError, match=next(iter(change)).replace("__", ".")):
        check_kept(altered(**change), "last.ckpt")


@pytest.mark.parametrize(
    "change",
    [
        {"model__student_optimizer__lr": 2e-3},
        {"data__num_workers": 4},
        {"data__folder": "/scratch/images"},
        {"model__teacher": "moved/last.ckpt"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_same_run_may_be_trained_otherwise(change):
    found = altered(**change)
    assert [change.name for change in found] == [next(iter(change)).replace("__", ".")]
    check_kept(found, "last.ckpt")


def test_options_of_another_version_are_no_change():
    before = flat_settings(RUN)
    assert changes(before, {**before, "model.brand_new": 3}) == []
    assert changes({**before, "model.gone": 3}, before) == []


def test_a_changed_class_is_one_change_not_one_for_each_argument():
    now = {"class_path": "SiD", "init_args": {"alpha": 1.0}}
    found = changes(
        flat_settings(RUN), flat_settings({**RUN, "model": {**RUN["model"], "init_args": {"objective": now}}})
    )
    assert [change.name for change in found] == ["model.objective"]

"""Every fault is named, a healthy student has none, and a teacher's fault is not laid at its student's door."""

import pytest

from fdistill.evaluation.report.verdict import number, verdict

GOOD = {
    "frechet_distance": 0.3,
    "precision": 0.9,
    "recall": 0.9,
    "accuracy": 0.98,
    "mode_coverage": 1.0,
    "vendi": 9.0,
    "vendi_ratio": 1.0,
    "anchored_tid": 0.0,
    "count_ratio": 1.0,
    "local_coverage": 0.998,
    "memorized_fraction": 0.0,
    "missing_modes": [],
}
BANDS = {"recall": [0.6, None], "vendi_ratio": [0.8, None], "anchored_tid": [None, 1.2], "mode_coverage": [0.9, None]}


def row(**numbers):
    """Numbers with intervals of 5% on each side."""
    values = GOOD | numbers
    scalars = {name: value for name, value in values.items() if isinstance(value, float)}
    return values | {"intervals": {name: sorted([0.95 * value, 1.05 * value]) for name, value in scalars.items()}}


def report(teacher=True, floor=None, **student):
    rows = {"student": row(**student), "floor": row(**(floor or {})), "class_gaussian": row(frechet_distance=1.5)}
    if teacher is not False:
        rows["teacher"] = row() if teacher is True else teacher
    held_out = {"vendi": 9.0, "accuracy": 0.98, "memorized_fraction": 0.002}
    facts = {"held_out": held_out, "bands": BANDS, "judged_modes": 10, "n": 1000, "student_evaluations": 1}
    return rows | facts


@pytest.mark.parametrize("teacher", [True, False])
def test_a_student_like_real_data_has_no_fault(teacher):
    said = verdict(report(teacher))
    assert said.startswith("Nothing is wrong that these numbers can see. What is right: distance .30 (the floor is .30")
    assert ("the teacher's .90" in said) == teacher
    assert ";" not in said  # no hint


@pytest.mark.parametrize(
    ("student", "words", "hint"),
    [
        ({"missing_modes": [3, 5, 8]}, "It makes only 7 of 10 classes: 3, 5 and 8 are missing", "ForwardKL"),
        ({"missing_modes": [4]}, "It makes only 9 of 10 classes: 4 is missing", "noise_levels"),
        ({"rare_modes": [2, 6]}, "2 of 10 classes are far too rare: 2 and 6", "ForwardKL"),
        (
            {"missing_modes": [3, 5], "rare_modes": [7]},
            "8 of 10 classes: 3 and 5 are missing, and too few of 7",
            "ForwardKL",
        ),
        ({"mode_coverage": 0.7}, "30% of the classes have less than a quarter of the samples", "ForwardKL"),
        (
            {"recall": 0.31, "precision": 0.97},
            "Recall .31 is far below the teacher's .90 while precision is .97",
            "Jensen",
        ),
        ({"recall": 0.31, "precision": 0.97}, "mode dropping", "ForwardKL"),
        (
            {"recall": 0.3, "precision": 0.4},
            "Recall .30 is far below the teacher's .90: it does not reach",
            "ForwardKL",
        ),
        ({"vendi_ratio": 0.7}, "less varied than real ones: the Vendi ratio is .70", "ForwardKL"),
        ({"anchored_tid": 3.0, "count_ratio": 4.0}, "each has 4 times the neighbours of a real one", "ForwardKL"),
        ({"local_coverage": 0.8}, "It hardly reaches 20% of the real data", "ForwardKL"),
        (
            {"memorized_fraction": 0.12},
            "12% of its samples are near copies of training images, where chance",
            "stop earlier",
        ),
        ({"accuracy": 0.61}, "Labels are often wrong: accuracy .61 against the teacher's .98", "guidance"),
        (
            {"precision": 0.5},
            "Precision .50 is far below the teacher's .90: many samples are unlike",
            "adversarial_weight",
        ),
        ({"vendi": 11.0, "vendi_ratio": 1.3}, "Vendi score 11 is above the data's 9: that is blur or noise", "longer"),
        (
            {"frechet_distance": 0.9},
            "Its distance .90 is far above the teacher's .30 and the floor .30",
            "train longer",
        ),
        (
            {"frechet_distance": 1.7},
            "no better than that of one Gaussian per class, 1.5: it has learned little",
            "losses",
        ),
    ],
)
def test_each_fault_is_named_with_what_to_turn(student, words, hint):
    said = verdict(report(**student))
    assert words in said
    assert hint in said
    assert "Nothing is wrong" not in said
    assert "What is right: " in said


def test_what_is_wrong_is_not_called_right():
    said = verdict(report(recall=0.3, accuracy=0.5))
    right = said.split("What is right: ")[1]
    assert "precision" in right
    assert "recall" not in right
    assert "accuracy" not in right


def test_a_fault_of_the_teacher_is_looked_for_there():
    said = verdict(report(teacher=row(recall=0.35), recall=0.31))
    assert "Recall .31 is far below real data's .90" in said
    assert "the teacher has the same fault, so look there first" in said
    assert "ForwardKL" not in said


def test_a_difference_within_the_intervals_is_none():
    wide = row(recall=0.7) | {"intervals": {"recall": [0.5, 0.91]}}
    assert "Nothing is wrong" in verdict(report() | {"student": wide})
    narrow = row(recall=0.7) | {"intervals": {"recall": [0.68, 0.72]}}
    assert "Recall .70 is far below" in verdict(report() | {"student": narrow})


def test_a_small_difference_is_none_however_narrow_the_intervals():
    sure = row(recall=0.85, accuracy=0.95) | {"intervals": {}}
    assert "Nothing is wrong" in verdict(report() | {"student": sure})


def test_a_class_that_the_floor_lacks_too_is_not_missing():
    assert "Nothing is wrong" in verdict(report(floor={"missing_modes": [7]}, missing_modes=[7]))


def test_at_most_four_faults_are_told_the_worst_first():
    said = verdict(
        report(missing_modes=[1], recall=0.1, vendi_ratio=0.3, accuracy=0.2, precision=0.2, memorized_fraction=0.5)
    )
    places = [said.index(words) for words in ("missing", "Recall", "less varied", "near copies", "2 lesser faults")]
    assert places == sorted(places)
    assert "Labels" not in said


def test_many_missing_classes_are_not_all_listed():
    said = verdict(report(missing_modes=list(range(50))) | {"judged_modes": 100})
    assert "It makes only 50 of 100 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and others are missing" in said


def test_a_gaussian_per_class_is_no_bar_where_the_data_is_made_of_them():
    given = report(frechet_distance=1.7) | {"class_gaussian": row(frechet_distance=0.3)}
    assert "learned little" not in verdict(given)
    assert "far above" in verdict(given)


def test_hints_on_training_are_for_one_step_students():
    for evaluations in (None, 35):
        said = verdict(report(recall=0.3) | {"student_evaluations": evaluations})
        assert "Recall .30 is far below" in said
        assert "ForwardKL" not in said


def test_few_samples_are_told():
    assert "With 60 samples the intervals are wide" in verdict(report() | {"n": 60})


def test_data_without_classes_and_bands_has_a_verdict_too():
    bare = {name: GOOD[name] for name in ("frechet_distance", "precision", "recall", "vendi", "vendi_ratio")}
    said = verdict({"student": bare, "floor": bare})
    assert said.startswith("Nothing is wrong")
    assert "accuracy" not in said
    assert verdict({}) == verdict({"student": bare}) == ""


def test_numbers_are_short():
    assert [number(value) for value in (0.861, 0.0042, 12.345, 1.0, -0.25, 0.0)] == [
        ".86",
        ".0042",
        "12.3",
        "1",
        "-.25",
        "0",
    ]

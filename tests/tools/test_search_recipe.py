"""The search's tables: ratios to the teacher of the same seed, medians over seeds."""

import json

import search_recipe
from search_recipe import TRIALS, spread, table


def written(folder, name, seed, frechet, recall):
    judged = {"frechet": frechet, "recall": recall, "precision": 0.9}
    row = judged if name == "teacher" else {"seconds": 7.0, "last": judged, "chosen": judged}
    (folder / f"{name}-{seed}.json").write_text(json.dumps(row), encoding="utf-8")


def test_rows_are_medians_of_ratios_to_the_teacher_of_the_same_seed(tmp_path):
    for seed, teacher, student in ((10, 1.0, 2.0), (11, 2.0, 3.0)):
        written(tmp_path, "teacher", seed, teacher, 0.8)
        written(tmp_path, "start 1", seed, student, 0.4)
    rows = table(tmp_path, "digits", []).splitlines()
    assert len(rows) == 3
    assert rows[2].split(" | ")[3:5] == ["1.750 (1.500 to 2.000)", "0.500 (0.500 to 0.500)"]
    assert table(tmp_path, "digits", [11]).splitlines()[2].split(" | ")[2:4] == ["11", "1.500"]


def test_a_name_that_another_begins_with_has_its_own_runs(tmp_path):
    written(tmp_path, "teacher", 10, 1.0, 1.0)
    written(tmp_path, "start 1, low", 10, 1.0, 1.0)
    assert "| start 1 |" not in table(tmp_path, "digits", [])


def test_temperatures_have_rows_of_their_own(tmp_path):
    written(tmp_path, "teacher", 10, 1.0, 0.8)
    written(tmp_path, "start 1", 10, 1.0, 0.4)
    file = tmp_path / "start 1-10.json"
    warm = {
        "1.05": {"frechet": 1.2, "recall": 0.6, "precision": 0.9},
        "1.1": {"frechet": 1.4, "recall": 0.8, "precision": 0.9},
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"warm": warm}), encoding="utf-8")
    rows = table(tmp_path, "digits", []).splitlines()
    assert rows[3] == "| start 1, temperature 1.05 | 600 | 10 | 1.200 | 0.750 | 1.000 |  |  | 7 |"
    assert len(rows) == 5


def test_spread_of_one_value_has_no_range():
    assert spread([1.0]) == "1.000"


def test_every_trial_is_a_configuration(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(search_recipe, "run_trainer", lambda arguments, run: given.append(arguments))
    for task, trials in TRIALS.items():
        for trial in trials.values():
            search_recipe.built(task, trial, "teacher.ckpt", 3)
    assert all("--seed_everything=3" in arguments for arguments in given)

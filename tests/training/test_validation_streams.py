"""Validation and prediction draw from streams of their own: no turn of training has their noise."""

import pytest
import tiny_runs
from tiny_runs import fit, ring, teacher_training

from fdistill.core.random import fold_seed, generator_for
from fdistill.training import base, student_validation, teacher

TURNS = 3


@pytest.mark.parametrize("build", [tiny_runs.distillation, teacher_training])
def test_no_validation_batch_has_the_stream_of_a_turn(build, monkeypatch):
    seeds = {place: set() for place in (base, student_validation, teacher)}

    def watched(place):
        def watching(*integers, **device):
            seeds[place].add(fold_seed(*integers))
            return generator_for(*integers, **device)

        return watching

    for place in seeds:
        monkeypatch.setattr(place, "generator_for", watched(place))
    validation = {"limit_val_batches": TURNS, "val_check_interval": 1, "check_val_every_n_epoch": None}
    fit(build(seed=7), TURNS, ring(batch_size=8), **validation)
    training, beside = seeds[base], seeds[student_validation] | seeds[teacher]
    assert training == {fold_seed(7, turn, 0) for turn in range(TURNS)}
    assert len(beside) == TURNS
    assert not training & beside

"""What every data offers to be looked at by name: classes evenly over all, in the words of its networks."""

import torch

from fdistill.data import ColouredDigits, Digits, GaussianMixtureData, LatentsOnly


def test_classes_are_spread_evenly_and_named():
    condition, names = Digits().named_conditions(4)
    assert condition["labels"].tolist() == [0, 3, 6, 9]
    assert names == ["class 0", "class 3", "class 6", "class 9"]
    assert len(Digits().named_conditions(99)[1]) == 10


def test_several_sets_of_classes_are_asked_for_by_their_names():
    condition, names = ColouredDigits().named_conditions(40)
    assert len(names) == condition.length == 40
    assert torch.equal(condition["digit"], torch.arange(40) // 4)
    condition.check(ColouredDigits().takes, 40)


def test_data_without_classes_has_the_empty_condition():
    condition, names = LatentsOnly([2]).named_conditions(5)
    assert (dict(condition), names) == ({}, ["all samples"])
    assert GaussianMixtureData(num_modes=3).named_conditions(5)[0].length == 3

"""Conditions: named tensors of one batch."""

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fdistill.models.condition import Condition, Entry, fits, takes_classes


@pytest.fixture
def condition():
    return Condition({"digit": torch.arange(5), "text": torch.arange(30.0).reshape(5, 3, 2)})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_rows_split_and_cat_are_inverse(condition):
    parts = list(condition.split(2))
    assert [part.length for part in parts] == [2, 2, 1]
    assert same(Condition.cat(parts), condition)
    assert same(condition.rows(torch.tensor([3, 1])), Condition({n: v[[3, 1]] for n, v in condition.items()}))


def test_where_takes_whole_samples_of_the_other(condition):
    null = Condition({"digit": torch.tensor([9]), "text": torch.full((1, 3, 2), -1.0)})
    mixed = condition.where(torch.tensor([True, False, False, True, False]), null)
    assert mixed["digit"].tolist() == [9, 1, 2, 9, 4]
    assert torch.equal(mixed["text"][[0, 3]], null["text"].expand(2, 3, 2))
    assert torch.equal(mixed["text"][[1, 2, 4]], condition["text"][[1, 2, 4]])


def test_repeat_keeps_the_samples_of_one_row_together(condition):
    assert condition.repeat(2)["digit"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_empty_condition_fits_every_batch():
    empty = Condition()
    assert empty.length is None
    assert same(empty.rows(slice(2)), empty)
    assert same(next(empty.split(3)), empty)
    empty.check({}, 7)


def test_it_is_a_tree_of_its_tensors(condition):
    leaves, tree = tree_flatten(condition)
    assert [leaf.shape for leaf in leaves] == [(5,), (5, 3, 2)]
    assert same(tree_unflatten(leaves, tree), condition)
    assert same(tree_map(lambda value: value + 1, condition), Condition({n: v + 1 for n, v in condition.items()}))


def test_an_exported_program_takes_it(condition):
    class Sum(torch.nn.Module):
        def forward(self, x, condition):
            return x + condition["text"].sum((1, 2)) + condition["digit"]

    batch = torch.export.Dim("batch", min=2)
    shapes = {"x": {0: batch}, "condition": [{0: batch}, {0: batch}]}
    program = torch.export.export(Sum(), (torch.zeros(5), condition), dynamic_shapes=shapes)
    few = condition.rows(slice(3))
    assert torch.equal(program.module()(torch.ones(3), few), Sum()(torch.ones(3), few))


@pytest.mark.parametrize(
    ("takes", "length", "word"),
    [
        ({"ground": Entry(classes=4)}, 5, "ground"),
        (takes_classes({"digit": 10}), 4, "row"),
        ({"text": Entry((None, 4), torch.float32)}, 5, "shape"),
        ({"text": Entry((None, 2))}, 5, "type"),
    ],
)
def test_a_condition_that_does_not_fit_is_named(condition, takes, length, word):
    with pytest.raises(ValueError, match=word):
        condition.check(takes, length)


@pytest.mark.parametrize("takes", [{"digit": Entry(classes=10)}, {"text": Entry((None, 2), torch.float32)}])
def test_what_fits_passes_and_other_names_are_not_read(condition, takes):
    assert condition.check(takes, 5) is None


TEXT = {"text": Entry((None, 4), torch.float32)}


@pytest.mark.parametrize(
    ("takes", "given", "expected"),
    [
        ({}, TEXT, True),
        (TEXT, {"text": Entry((7, 4), torch.float32)}, True),
        ({"text": Entry((7, 4), torch.float32)}, TEXT, True),
        (TEXT, {"text": Entry((7, 5), torch.float32)}, False),
        (TEXT, {"text": Entry((4,), torch.float32)}, False),
        (TEXT, {"text": Entry((7, 4))}, False),
        (TEXT, {}, False),
        (takes_classes(3), takes_classes(4), False),
    ],
)
def test_an_open_length_fits_every_length_and_nothing_else_is_open(takes, given, expected):
    assert fits(takes, given) is expected


def test_tensors_of_different_batches_are_refused():
    with pytest.raises(ValueError, match="batch"):
        Condition({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_classes_declare_themselves():
    assert takes_classes(10) == {"labels": Entry(classes=10)}
    assert takes_classes(0) == {}
    for wrong in (-1, {"digit": -3}, {"digit.colour": 3}):
        with pytest.raises(ValueError, match="classes"):
            takes_classes(wrong)
    assert takes_classes({"digit": 10, "ground": 4}) == {"digit": Entry(classes=10), "ground": Entry(classes=4)}


def prompts(*lengths):
    """Ones for each token, zeros after them."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return Condition(
        {"text": mask[..., None].expand(-1, -1, 2).float(), "mask": mask, "pooled": torch.ones(len(lengths), 3)}
    )


def test_prompts_of_different_lengths_are_padded_where_a_mask_says_so():
    expected = prompts(2, 1, 5, 3)
    assert same(Condition.cat([prompts(2, 1), prompts(5, 3)]), expected)
    for null in (prompts(1), prompts(3)):  # shorter than the prompts, and longer
        length = int(null["mask"].sum())
        mixed = prompts(2, 1).where(torch.tensor([True, False]), null)
        assert same(mixed.rows(slice(1)), prompts(length, 2 if length < 2 else 1).rows(slice(1)))
        assert mixed["mask"].sum(1).tolist() == [length, 1]


def test_different_lengths_without_a_mask_are_told():
    one, other = (Condition({"text": torch.zeros(2, length, 4)}) for length in (3, 5))
    for join in (lambda: Condition.cat([one, other]), lambda: one.where(torch.tensor([True, False]), other)):
        with pytest.raises(ValueError, match=r"mask says which tokens count: got \{'text': \[3, 5\]\} without"):
            join()

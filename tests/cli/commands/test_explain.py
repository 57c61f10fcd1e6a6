"""Messages of the parser that no rule knows stay readable, and no rule fails on a message it half knows."""

import pytest

from fdistill.cli.commands import _switched
from fdistill.cli.commands.explain import choices, explain

OPTIONS = {"n": int, "trainer.max_steps": int}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "--onnx", "true", "--n", "3"], ["a", "--onnx=true", "--n", "3"]),
        (["--onnx", "false"], ["--onnx=false"]),
        (["--onnx", "a", "--onnx"], ["--onnx=true", "a", "--onnx=true"]),
        (["--onnx=false", "--n", "true"], ["--onnx=false", "--n", "true"]),
    ],
)
def test_a_switch_takes_true_and_false_or_nothing(given, expected):
    assert _switched(given, {"--onnx"}) == expected


def test_unknown_messages_come_through_on_one_line():
    assert explain(" something\tnew ", OPTIONS) == "something new"


def test_endless_messages_are_cut_between_words():
    line = explain("word " * 200, OPTIONS)
    assert len(line) <= 404
    assert line.endswith("word ...")


def test_many_names_are_cut_to_the_nearest():
    known = [f"name{i}" for i in range(40)]
    text = choices("name7x", known)
    assert text.startswith("; did you mean name7? expected one of name7, ")
    assert text.endswith(", ...")
    assert text.count("name") == 9


def test_few_names_are_all_listed():
    assert choices("zzz", ["a", "b"]) == ": expected one of a, b"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("unrecognized arguments: --m 3", "--m 3"),
        ("unrecognized arguments: --trainer.max_step=3", "did you mean trainer.max_steps?"),
        ("the following arguments are required: fit.data", "required: data"),
        ("Parser key \"n\": Expected a <class 'int'>. Got value: x", "n: expected a whole number, got x"),
        ("Parser key \"n\": Expected a <class 'pathlib.Path'>. Got value: x", "n: expected a Path, got x"),
        (
            "Parser key \"a\":\n  Problem with given class_path 'no.such':\n    Option 'm' is not accepted",
            "a: Option 'm'",
        ),
    ],
)
def test_known_messages(message, words):
    assert words in explain(message, OPTIONS)


def test_the_deepest_reason_is_told_with_all_types_that_it_may_have():
    message = """Parser key "data":
      Errors:
        - Problem with given class_path 'fdistill.data.Digits':
            Parser key "batch_size":
              Does not validate against any of the Union subtypes
              Errors:
                - Expected a <class 'int'>
                - Expected a <class 'float'>
              Given value: x
        - Expected a <class 'NoneType'>"""
    assert explain(message, {}) == "data.batch_size: expected a whole number or expected a number, got x"

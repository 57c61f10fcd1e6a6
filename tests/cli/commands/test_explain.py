"""Messages of the parser that no rule knows stay readable, and no rule fails on a message it half knows."""

import pytest

from fdistill.cli.commands.explain import choices, explain

OPTIONS = {"n": int, "trainer.max_steps": int}


def test_unknown_messages_come_through_on_one_line():
    assert explain("something\n  new", OPTIONS) == "something new"


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
    ("message", "line"),
    [
        ("unrecognized arguments: --m 3", "there is no option --m"),
        (
            "unrecognized arguments: --trainer.max_step=3",
            "there is no option --trainer.max_step; did you mean trainer.max_steps?",
        ),
        ("unrecognized arguments: loose", "unexpected argument 'loose': every value follows the name of its option"),
        (
            "the following arguments are required: fit.data",
            "missing: data: give --config FILE, one that names the classes",
        ),
        ("Parser key \"n\": Expected a <class 'int'>. Got value: x", "n is a whole number: got x"),
        ("Parser key \"n\": Expected a <class 'pathlib.Path'>. Got value: x", "n is pathlib.Path: got x"),
        ("Option 'fit.m' is not accepted", "there is no option fit.m"),
    ],
)
def test_known_messages(message, line):
    assert explain(message, OPTIONS) == line

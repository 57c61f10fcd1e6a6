"""A test is of the system when it, or a helper, fixture or class it uses, trains or starts a command or a process."""

import functools
import math
import os

import pytest
from system_tests import starts_something
from tiny_runs import fit, weights


def forks():
    return os.fork()


def by_a_helper():
    return [forks() for _ in range(2)]


def by_a_lambda():
    return lambda: fit(None, 1)


class ByAMethod:
    def work(self):
        by_a_helper()


def by_a_class():
    return ByAMethod()


@functools.wraps(by_a_helper)
def by_what_it_wraps():
    return None


def calls_itself():
    return calls_itself() + math.pi + len(weights(None))


@pytest.mark.parametrize("part", [forks, by_a_helper, by_a_lambda, ByAMethod, by_a_class, by_what_it_wraps])
def test_what_starts_something_is_found(part):
    assert starts_something(part, {})


@pytest.mark.parametrize("part", [calls_itself, weights, math.sqrt, dict, 3, None])
def test_what_only_calls_the_package_is_not(part):
    assert not starts_something(part, {})


@pytest.fixture
def child():
    return lambda: fit


def marks(request):
    return {mark.name for mark in request.node.iter_markers()}


def test_a_test_with_such_a_fixture_is_marked(child, request):
    assert "system" in marks(request)


def test_a_test_without_is_not(request):
    assert "system" not in marks(request)

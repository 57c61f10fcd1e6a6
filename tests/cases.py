"""Cases of a test of which a few run every time, and all under -m slow."""

import pytest


def slow_but(cases, *quick):
    """The cases for pytest.mark.parametrize, all but the quick ones marked slow.

    Raises:
        ValueError: for a quick one that is no case.
    """
    cases = list(cases)
    if unknown := set(quick) - set(cases):
        raise ValueError(f"quick cases are some of {cases}: got {sorted(unknown)}")
    parts = {case: case if isinstance(case, tuple) else (case,) for case in cases}
    return [case if case in quick else pytest.param(*parts[case], marks=pytest.mark.slow) for case in cases]

"""Tests of figures see them drawn."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _drawn(drawn):
    pass

"""Tests of figures see them drawn."""

import pytest

from fdistill.evaluation.report.figure_file import png


@pytest.fixture(scope="module", autouse=True)
def _drawn_pictures(_white_pictures):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fdistill.evaluation.report.figure_file.png", png)
        yield

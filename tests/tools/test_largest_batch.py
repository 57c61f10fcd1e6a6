"""tools/largest_batch.py finds where memory ends, with turns of the run itself."""

import largest_batch as tool
import pytest
import torch
from cli_runs import teacher_arguments

from fdistill.models.denoiser import Denoiser

pytestmark = pytest.mark.system  # seconds, too many for make check


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 16, 100, 1000, 4095])
def test_the_largest_is_found_to_within_a_sixteenth(limit):
    found = tool.largest(lambda batch_size: batch_size <= limit)
    assert limit - max(limit // 16, 1) <= found <= limit
    assert found >= 1


def test_none_fits_and_all_fit():
    assert tool.largest(lambda _: False) == 0
    assert tool.largest(lambda _: True, first=3, most=50) == 48


@pytest.mark.slow
def test_turns_of_the_run_decide_and_other_errors_come_through(tmp_path, monkeypatch):
    forward, seen = Denoiser.forward, []

    def small_device(self, x, *more):
        seen.append(len(x))
        if len(x) > 24:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x, *more)

    monkeypatch.setattr(Denoiser, "forward", small_device)
    arguments = [str(argument) for argument in teacher_arguments(tmp_path / "run")[1:]]
    assert [tool.fits(arguments, batch_size) for batch_size in (16, 32)] == [True, False]
    assert seen == [16, 16, 32]
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(Denoiser, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tool.fits(arguments, 8)

"""What is marked gpu is skipped where there is no CUDA device; each test leaves the settings of CUDA as they were."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product: sums in a fixed order

import pytest
import torch


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason="no CUDA device: make gpu on a machine that has one")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(missing)


@pytest.fixture(autouse=True)
def settings_of_cuda(monkeypatch):
    """Products and convolutions in float32, nothing deterministic or watched that does not ask for it."""
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")

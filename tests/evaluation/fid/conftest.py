"""Weights of the stand-ins, and the stand-ins themselves where a test asks for them."""

import sys

import pytest
import torch
from standard_libraries import Clip, Inception, Timm, libraries


@pytest.fixture
def standard(monkeypatch, tmp_path):
    """Folder with weights of stand-ins, which take the place of the libraries."""
    for name, module in libraries().items():
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    for name, network in {"inception": Inception("", ["2048"]), "dinov2": Timm(1), "clip": Clip()}.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    return tmp_path

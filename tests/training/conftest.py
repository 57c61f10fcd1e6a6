"""What proofs of training share."""

import pytest
import torch


@pytest.fixture
def double():
    """New networks are of float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)

"""What tensors and plain values hold, in a few letters: equal fingerprints mean equal bits."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(described: Any, tensors: Mapping[str, Tensor] | None = None, letters: int = 16) -> str:
    """SHA-256 of plain values and of tensors by name, in hexadecimal.

    Args:
        described: what json writes; the order of keys does not matter.
        tensors: on any device; their names, types, shapes and values count.
        letters: how many of the 64 to keep, in [1, 64].
    """
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted((tensors or {}).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:letters]

"""IDX files for tests, written as their format says."""

import struct

import torch

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def idx(array):
    """The bytes of a file that holds an array of unsigned bytes."""
    header = bytes((0, 0, 8, array.dim())) + struct.pack(f">{array.dim()}I", *array.shape)
    return header + array.to(torch.uint8).numpy().tobytes()


def write_idx(folder, pack=lambda data: data, suffix="", n=6):
    """A data set whose image i is all of value 10 i, of class i mod 3; the held-out one is its first half."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = (10 * torch.arange(n)).view(n, 1, 1).expand(n, 2, 4), torch.arange(n) % 3
    for name, part in (("train", slice(n)), ("t10k", slice(n // 2))):
        (folder / f"{name}-{IMAGES}{suffix}").write_bytes(pack(idx(images[part].contiguous())))
        (folder / f"{name}-{LABELS}{suffix}").write_bytes(pack(idx(labels[part])))
    return folder

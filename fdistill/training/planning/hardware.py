"""Peak rates of GPUs by their vendor's data sheets, the time of a ring all-reduce, and the ceiling of this machine."""

import time
from typing import Literal, NamedTuple

import torch

Arithmetic = Literal["bf16", "tf32", "fp32"]
"""Of matrix products: bf16 tensor cores, TF32 tensor cores, or plain float32."""


class Gpu(NamedTuple):
    """One device. Rates are peaks of dense matrix products, which no network reaches."""

    bf16: float  # FLOP/s
    tf32: float  # FLOP/s
    fp32: float  # FLOP/s
    memory: float  # bytes
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s each way to the other devices of its machine

    def peak(self, arithmetic: Arithmetic) -> float:
        """FLOP/s."""
        return getattr(self, arithmetic)


# A plan is made where the GPU is not, so that nothing can be measured.
GPUS = {  # NVIDIA's data sheets; where they print a rate "with sparsity", half of it
    "A100": Gpu(312e12, 156e12, 19.5e12, 80e9, 2.039e12, 300e9),  # SXM4, 80 GB
    "H100": Gpu(989e12, 494e12, 67e12, 80e9, 3.35e12, 450e9),  # SXM5
    "H200": Gpu(989e12, 494e12, 67e12, 141e9, 4.8e12, 450e9),  # SXM5
    "B200": Gpu(2250e12, 1125e12, 75e12, 180e9, 7.7e12, 900e9),  # HGX
    "L40S": Gpu(362e12, 183e12, 91.6e12, 48e9, 0.864e12, 32e9),  # PCIe 4.0 x16
    "RTX4090": Gpu(165e12, 82.6e12, 82.6e12, 24e9, 1.008e12, 32e9),  # Ada white paper, float32 sums; PCIe 4.0 x16
}


def ring_seconds(size: float, devices: int, rate: float) -> float:
    """Least time of a ring all-reduce: each device sends 2 (n - 1) / n of the bytes; latency is left out.

    Args:
        size: bytes that each device holds.
        devices: n, >= 1.
        rate: bytes/s that each device sends.
    """
    return 2 * (devices - 1) / devices * size / rate


def measured_ceiling(size: int = 1024, repeats: int = 20) -> float:
    """FLOP/s of the fastest of some float32 products of two [size, size] matrices on the CPU, with present threads."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)

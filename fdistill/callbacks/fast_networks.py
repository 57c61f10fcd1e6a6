"""Kernels instead of arithmetic: compilation, memory order and matrix precision of all networks of a run."""

import lightning.pytorch as L
import torch

from fdistill.distributed import is_sharded
from fdistill.modules import GenerativeModule


class FastNetworks(L.Callback):
    """Compiles both halves of every denoiser, and lays images out with channels last; weights and names stay.

    What the turn does around the networks stays as it is. The first turns compile, and so does the first batch of
    another size. Results differ from those without it by rounding, so a run that continues keeps the same setting. The
    average and the generator that is sampled from it are not compiled.
    """

    def __init__(
        self, backend: str = "inductor", mode: str | None = None, channels_last: bool = True, tf32: bool = True
    ) -> None:
        """Args:
        backend: of torch.compile; "none" compiles nothing.
        mode: of the inductor backend, "reduce-overhead" (CUDA graphs) or "max-autotune"; None for its default.
        channels_last: whether four-dimensional weights lie in that order, which convolutions in bf16 on GPUs want.
        tf32: whether float32 matrix products on CUDA may round their factors to 10 bits.

        Raises:
            ValueError: for a backend that torch does not know.
        """
        known = ["none", *torch.compiler.list_backends(exclude_tags=None)]
        if backend not in known:
            raise ValueError(f"FastNetworks compiles by one of {', '.join(known)}: got {backend!r}")
        self.backend, self.mode, self.channels_last, self.tf32 = backend, mode, channels_last, tf32

    def on_fit_start(self, trainer: L.Trainer, pl_module: GenerativeModule) -> None:
        """Before the first turn, with the networks on their device."""
        if self.tf32 and pl_module.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        for denoiser in pl_module.denoisers().values():
            network = denoiser.network
            if self.channels_last and not is_sharded(network):  # FSDP2 keeps its parts in their own order
                network.to(memory_format=torch.channels_last)
            if self.backend != "none":
                network.encode = torch.compile(network.encode, backend=self.backend, mode=self.mode, dynamic=False)
                network.decode = torch.compile(network.decode, backend=self.backend, mode=self.mode, dynamic=False)

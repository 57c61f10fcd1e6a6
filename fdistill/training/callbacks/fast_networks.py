"""Kernels instead of arithmetic: compilation, memory order and matrix precision of all networks of a run."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import nn

from fdistill.core.distributed import is_sharded
from fdistill.core.private_apis import keep_buffers
from fdistill.models.denoiser import Denoiser, lay_channels_last
from fdistill.models.networks import EDM2UNet
from fdistill.training import GenerativeModule
from fdistill.training.parallel import ShardedStrategy
from fdistill.training.run_parts import generative

_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
_AUTOGRAD_ALONE = ("none", "eager")  # backends whose backward pass is torch's own, with second derivatives


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
        mode: of the inductor backend, "reduce-overhead" (CUDA graphs) or "max-autotune" (these and measured kernels);
            None for its default.
        channels_last: whether four-dimensional weights lie in that order, which convolutions in bf16 on GPUs want.
        tf32: whether float32 matrix products on CUDA may round their factors to 10 bits.

        Raises:
            ValueError: for a backend that torch does not know.
        """
        known = ["none", *torch.compiler.list_backends(exclude_tags=None)]
        if backend not in known:
            raise ValueError(f"FastNetworks compiles by one of {', '.join(known)}: got {backend!r}")
        self.backend, self.mode, self.channels_last, self.tf32 = backend, mode, channels_last, tf32

    @property
    def replays(self) -> bool:
        """Whether CUDA graphs are recorded and replayed."""
        return self.backend == "cudagraphs" or (self.backend == "inductor" and self.mode in _CUDA_GRAPHS)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first turn, with the networks on their device.

        Raises:
            ValueError: where a compiled network cannot do what the run asks of it.
        """
        module = generative(pl_module)
        self._check(trainer, module)
        for denoiser in module.denoisers().values():
            self.hasten(denoiser)
        average = module.ema.average
        if self.channels_last and not is_sharded(average):
            lay_channels_last(average)  # one kernel updates it only where it lies like the weights

    def on_train_batch_start(self, *args: Any) -> None:
        """Tell CUDA graphs that the tensors of the last turn may be overwritten.

        Without that they guess, and take the second question to a network in a turn for a new turn.
        """
        if self.replays:
            torch.compiler.cudagraph_mark_step_begin()

    def hasten(self, denoiser: Denoiser) -> None:
        """Compile and lay out one denoiser, which is on its device."""
        network = denoiser.network
        if self.tf32 and next(network.parameters(), torch.empty(0)).is_cuda:
            torch.set_float32_matmul_precision("high")
        if self.channels_last and not is_sharded(network):  # FSDP2 keeps its parts in their own order
            lay_channels_last(network)
        if self.backend != "none":
            self._compile(network)

    def _compile(self, network: nn.Module) -> None:
        # several terms of a loss go back through a network one after the other, and each needs all that it has kept
        keep_buffers()
        compiled: Any = network  # whose methods are replaced
        if isinstance(network, EDM2UNet):  # reads versions of its weights, which change in every turn
            compiled.normalise_weights = torch.compiler.disable(compiled.normalise_weights)
        compiled.encode = torch.compile(compiled.encode, backend=self.backend, mode=self.mode, dynamic=False)
        compiled.decode = torch.compile(compiled.decode, backend=self.backend, mode=self.mode, dynamic=False)

    def _check(self, trainer: L.Trainer, module: GenerativeModule) -> None:
        if self.replays and isinstance(trainer.strategy, ShardedStrategy):
            raise ValueError(
                "CUDA graphs read fixed places, and sharded weights are gathered anew in every pass: expected another "
                f"mode than {self.mode}, or --trainer.strategy replicated"
            )
        exact_r1 = getattr(module, "r1_weight", 0) and module.r1_step == 0 and module.reads in ("teacher", "fake_score")
        if exact_r1 and self.backend not in _AUTOGRAD_ALONE:
            raise ValueError(
                "compiled networks have no second derivatives, which the exact R1 penalty on their features asks for: "
                "set r1_step > 0 (0.1, say), got 0"
            )
        recomputes = any(denoiser.network.recomputes for denoiser in module.denoisers().values())
        if recomputes and self.backend != "none":
            raise ValueError(
                "torch compiles no block that is computed again in the context of its first pass: expected "
                f"gradient_checkpointing false, or FastNetworks(backend: none), got {self.backend}"
            )

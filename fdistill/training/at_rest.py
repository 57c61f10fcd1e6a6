"""Networks that are differentiated by their input alone keep nothing that only a gradient of weights would read."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from fdistill.core.distributed import is_sharded


@contextmanager
def weights_at_rest(network: nn.Module) -> Iterator[None]:
    """Inside, no weight of a network requires a gradient; gradients by its input have the same bits.

    Linear layers and normalisations then keep less by themselves. Torch's convolutions keep their input all the same,
    so those of two dimensions are replaced by ones that do not. It may be entered again inside, and reads no number.
    A sharded network stays as it is: what it computes with are gathered copies of its weights.
    """
    learning = [] if is_sharded(network) else [weight for weight in network.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        with _LeanConvolutions():
            yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def at_rest_as_now(network: nn.Module) -> AbstractContextManager[None]:
    """What is entered later, so that the weights of a network rest there if they rest now.

    It may be entered several times.
    """
    return _Again(network) if _LeanConvolutions.entered else nullcontext()


class _Again(AbstractContextManager[None]):
    """Each time anew, for backward passes that keep their graph."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.inside = network, ExitStack()

    def __enter__(self) -> None:
        self.inside.enter_context(weights_at_rest(self.network))

    def __exit__(self, *_: object) -> None:
        self.inside.close()


class _LeanConvolutions(TorchFunctionMode):
    """Convolutions by weights that need no gradient keep the weight and the shape of their input."""

    entered: ClassVar[int] = 0

    def __enter__(self) -> "_LeanConvolutions":
        _LeanConvolutions.entered += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _LeanConvolutions.entered -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.conv2d and not kwargs and len(args) == 7 and not isinstance(args[4], str):
            x, *weights = args[:3]
            if x.requires_grad and x.dim() == 4 and not any(w is not None and w.requires_grad for w in weights):
                return _LeanConvolution.apply(*args)
        return function(*args, **(kwargs or {}))


class _LeanConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.how = x.shape, x.dtype, how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        by_x = conv2d_input(ctx.shape, weight.to(gradient.dtype), gradient, *ctx.how)
        return by_x.to(ctx.dtype), *[None] * 6

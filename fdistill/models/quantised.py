"""Weights in int8 with a scale for each output: a base that does not learn, in a quarter of float32's memory.

W is held as q = round(W / s) with s = max |W| / 127 of each output (symmetric, as the weights of arXiv 2208.07339), off
by s / 2 at the most. A product makes W = s q for itself, in its own arithmetic, and so does its backward pass: a graph
keeps no weight but q, which lies in memory anyway.
"""

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

_LARGEST = 127


class Int8Linear(nn.Linear):
    """A linear layer with its weight in int8."""

    whole: ClassVar[type[nn.Module]] = nn.Linear  # the same layer with a weight in floating point
    weight_scale: nn.Parameter  # [out_features, 1], float32

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Product.apply(x, self.weight, self.weight_scale, self.bias, None))


class Int8Conv2d(nn.Conv2d):
    """A convolution with its weight in int8."""

    whole: ClassVar[type[nn.Module]] = nn.Conv2d
    weight_scale: nn.Parameter  # [out_channels, 1, 1, 1], float32

    def forward(self, x: Tensor) -> Tensor:
        window = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        return cast(Tensor, _Product.apply(x, self.weight, self.weight_scale, self.bias, window))


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Int8Linear, nn.Conv2d: Int8Conv2d}


def weight_dtype(layer: nn.Module) -> torch.dtype:
    """The floating-point type of a layer's weight, of one in int8 that of its scale."""
    return cast(Tensor, getattr(layer, "weight_scale", layer.weight)).dtype


def quantised_layers(module: nn.Module) -> list[Int8Linear | Int8Conv2d]:
    """The layers of a module that are held in int8."""
    return [layer for layer in module.modules() if isinstance(layer, Int8Linear | Int8Conv2d)]


@torch.no_grad()
def quantise(module: nn.Module) -> None:
    """Hold the weights of all plain linear layers and convolutions with zero padding in int8, in place.

    Raises:
        ValueError: where there are none.
    """
    found = [layer for layer in module.modules() if type(layer) in _KINDS and _is_suited(layer)]
    if not found:
        raise ValueError(
            f"int8 holds plain linear layers and convolutions, of which this {type(module).__name__} has none: give "
            "bfloat16 or float32"
        )
    for layer in found:
        weight = cast(Tensor, layer.weight)
        scale = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)).float() / _LARGEST
        scale = torch.where(scale > 0, scale, 1.0)
        layer.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        layer.__class__ = _KINDS[type(layer)]


@torch.no_grad()
def dequantise(module: nn.Module) -> None:
    """Hold in float32 again what `quantise` made int8, as W = s q; in place."""
    for layer in quantised_layers(module):
        layer.weight = nn.Parameter(layer.weight * layer.weight_scale, requires_grad=False)
        del layer.weight_scale
        layer.__class__ = cast(Any, type(layer).whole)


def _is_suited(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Conv2d) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))


class _Product(torch.autograd.Function):
    """x to W x + b, of which x alone is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, window: Any) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.window, ctx.given = window, (x.shape, x.dtype)
        dtype = _arithmetic_of(x)
        x, whole, bias = x.to(dtype), (weight * scale).to(dtype), None if bias is None else bias.to(dtype)
        return F.linear(x, whole, bias) if window is None else F.conv2d(x, whole, bias, **window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Adjoint.apply(gradients[0], *ctx.saved_tensors, ctx.window, ctx.given), None, None, None, None


class _Adjoint(torch.autograd.Function):
    """y to W^T y: the derivative of the product, whose own derivative is the product again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, scale: Tensor, window: Any, given: Any) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.window, (shape, dtype) = window, given
        whole = (weight * scale).to(y.dtype)
        return (y @ whole if window is None else conv2d_input(shape, whole, y, **window)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Product.apply(gradients[0], *ctx.saved_tensors, None, ctx.window), None, None, None, None


def _arithmetic_of(x: Tensor) -> torch.dtype:
    """What autocast would compute in; the meta device knows none."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)

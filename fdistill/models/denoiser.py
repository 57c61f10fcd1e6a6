"""A network, whatever it predicts, becomes D(x, sigma, condition) in variance-exploding coordinates."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fdistill.core.spec import Described
from fdistill.models.condition import Condition, Conditioned, Takes
from fdistill.models.networks import Encoding, Network
from fdistill.models.quantised import dequantise, quantise
from fdistill.theory.paths import NoiseRange
from fdistill.theory.preconditioning import Coefficients, Preconditioning

Behind = Literal["graph", "value", "nothing"]
"""What is made of an encoder half: a denoised sample with a graph, one without, or none."""


class HalfDenoised(NamedTuple):
    """A forward pass stopped after the encoder."""

    encoding: Encoding
    x: Tensor
    coefficients: Coefficients

    @property
    def features(self) -> tuple[Tensor, ...]:
        """The network's feature taps, each [B, C, ...]."""
        return self.encoding.features

    def detach_features(self) -> "HalfDenoised":
        """The same with features that carry no gradient."""
        features = tuple(tap.detach() for tap in self.features)
        return self._replace(encoding=self.encoding._replace(features=features))


def lay_channels_last(network: nn.Module) -> None:
    """Lay the weights of convolutions channels last, in place."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads leave it out


class Denoiser(nn.Module, Described):
    """D(x, sigma, condition) = E[x_0 | x] for x = x_0 + sigma eps.

    Shapes everywhere: x [B, *sample_shape], sigma [B] > 0, the condition what `takes` declares, of B samples; class
    numbers int64 [B] in [0, num_classes] (num_classes: no class) may stand for it where it takes these alone.
    """

    def __init__(self, network: Network, preconditioning: Preconditioning) -> None:
        """Args:
        network: the raw network F.
        preconditioning: how F becomes D.
        """
        super().__init__()
        self.network, self.preconditioning = network, preconditioning
        self.held = torch.float32  # how the matrices and kernels of its network lie in memory

    @property
    def halved(self) -> bool:
        """Whether it computes in bfloat16 by itself."""
        return self.held == torch.bfloat16

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.network.sample_shape

    @property
    def num_classes(self) -> int:
        """How many conditions it takes, where these are classes; 0 for every other."""
        return self.network.num_classes

    @property
    def takes(self) -> Takes:
        """The condition that it takes; empty where it is unconditional."""
        return self.network.takes

    def null(self, n: int, device: torch.device | str = "cpu") -> Condition:
        """The condition of n samples that means "no condition".

        Raises:
            ValueError: if the network was never trained without its condition.
        """
        return self.network.null(n, device)

    @property
    def noise_range(self) -> NoiseRange:
        """The noise levels that its network knows."""
        return self.preconditioning.noise_range

    def forward(self, x: Tensor, sigma: Tensor, condition: Conditioned = None) -> Tensor:
        """The denoised sample, [B, *sample_shape]."""
        cls = type(self)  # a sharded denoiser gathers its weights around each half, and here once around both
        return cls.finish(self, cls.encode(self, x, sigma, condition))

    def encode(self, x: Tensor, sigma: Tensor, condition: Conditioned = None, behind: Behind = "graph") -> HalfDenoised:
        """The encoder half, for its features; `behind` says what comes of it after these."""
        if sigma.shape != x.shape[:1]:
            raise ValueError(
                f"sigma holds one noise level per sample: expected {tuple(x.shape[:1])}, got {tuple(sigma.shape)}"
            )
        if x.shape[1:] != self.sample_shape:
            raise ValueError(f"this network sees samples of {self.sample_shape}: got {tuple(x.shape[1:])}")
        condition = Condition.of(condition, self.takes)
        condition.check(self.takes, x.shape[0])
        # of sigma in half precision a network would be told another time
        coefficients = self.preconditioning.coefficients(sigma.to(torch.promote_types(sigma.dtype, torch.float32)))
        with self._arithmetic(x):
            scaled = _rounded(_expand(coefficients.input, x) * x, x)
            given = scaled, coefficients.noise, condition
            if behind == "nothing":
                encoding = Encoding(self.network.features(*given), None)
            else:
                network = self.network
                encoding = (network.encode if behind == "graph" else network.encode_without_graph_behind)(*given)
        if self.halved and not torch.is_autocast_enabled(x.device.type):
            encoding = encoding._replace(features=tuple(tap.to(x.dtype) for tap in encoding.features))
        return HalfDenoised(encoding, x, coefficients)

    def finish(self, half: HalfDenoised) -> Tensor:
        """The decoder half; [B, *sample_shape]."""
        with self._arithmetic(half.x):
            output = self.network.decode(half.encoding)
        skip, out = (_expand(value, half.x) for value in half.coefficients[:2])
        return _rounded(skip * half.x + out * output.to(half.x.dtype), half.x)

    def carried(self, x: Tensor, sigma: Tensor) -> Tensor:
        """skip x, of D = skip x + out F: what of D is not the network's prediction; [B, *sample_shape]."""
        return _expand(self.preconditioning.coefficients(sigma).skip, x).to(x.dtype) * x

    def hold_in(self, dtype: torch.dtype) -> Self:
        """Keep the matrices and kernels of a network that does not learn in bfloat16, int8, or float32 again; in place.

        In bfloat16 they are multiplied in it, as under autocast; vectors, tables of embeddings and all that goes in and
        out stay float32. Under bf16 autocast, which rounds weights for every product, nothing changes but where a
        network scales its weights before it uses them (EDM2). In int8 (`fdistill.models.quantised`) the weights of
        linear layers and convolutions are rounded for good, and multiplied in the run's own precision.

        Raises:
            ValueError: where int8 finds no such layer.
        """
        if dtype == self.held:
            return self
        if self.held == torch.int8:
            dequantise(self.network)
        for module in self.network.modules() if torch.bfloat16 in (dtype, self.held) else ():
            for parameter in () if isinstance(module, nn.Embedding) else module.parameters(recurse=False):
                if parameter.ndim > 1:
                    parameter.data = parameter.data.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
        if dtype == torch.int8:
            quantise(self.network)
        self.held = dtype
        return self

    def _arithmetic(self, x: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(x.device.type, torch.bfloat16) if self.halved else nullcontext()

    def score(self, x: Tensor, sigma: Tensor, condition: Conditioned = None) -> Tensor:
        """Gradient of the log density of the sigma-marginal: (D - x) / sigma^2."""
        return (self(x, sigma, condition) - x) / _expand(sigma, x).square()


def _expand(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 1))


def _rounded(value: Tensor, x: Tensor) -> Tensor:
    """Back in the precision of x where that is below single, in which the coefficients are."""
    return value.to(x.dtype) if x.dtype in (torch.bfloat16, torch.float16) else value

"""Residual MLP for vectors (mixtures, toy data, features)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fdistill.models.condition import Condition, Takes, count_classes
from fdistill.models.networks.base import Encoding, Network
from fdistill.models.networks.embeddings import ConditionEmbedding

_FREQUENCY_SEED = 5  # student, fake score and teacher see the same waves


class MLP(Network):
    """x enters once; every block sees noise and class; features are the outputs of the first half's blocks."""

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 4,
        num_classes: int | Mapping[str, int] = 0,
        initial_output: Sequence[float] | None = None,
        frequencies: int = 0,
        frequency_std: float = 3.0,
        skip: bool = False,
    ) -> None:
        """Args:
        dim: entries of a sample.
        width: channels of the hidden layers, even.
        depth: residual blocks, at least 2.
        num_classes: 0 for an unconditional network; several sets of classes by their names.
        initial_output: F is this constant at first (dim values), so that under EDM preconditioning a one-step student
            starts as one Gaussian around sigma_data times it; None keeps the usual random start. A skip adds to it.
        frequencies: random Fourier features sin(f.x), cos(f.x) of the input beside the input itself, of so many fixed
            frequencies f (arXiv 2006.10739): what a map onto many narrow modes needs; 0 for none.
        frequency_std: of each entry of f, > 0; 1 / frequency_std is the width of what they resolve.
        skip: adds the input to the output, for networks that predict eps on a variance-preserving path: at high noise
            their input is nearly eps, so that little is left to learn there (arXiv 2508.16154). With initial_output
            of zeros F is the identity at first. EDM preconditioning has such a path already.
        """
        super().__init__()
        if dim < 1 or depth < 2:
            raise ValueError(f"an MLP needs dim >= 1 and depth >= 2: got {dim} and {depth}")
        if frequencies < 0 or not frequency_std > 0:
            raise ValueError(f"an MLP needs frequencies >= 0 of a std > 0: got {frequencies} and {frequency_std}")
        self.sample_shape, self.skip = (dim,), skip
        self.encoder_depth = depth // 2
        self.feature_channels = (width,) * self.encoder_depth
        self.condition = ConditionEmbedding(width, num_classes)
        self.num_classes = count_classes(self.takes)
        drawn = torch.randn(dim, frequencies, generator=torch.Generator().manual_seed(_FREQUENCY_SEED))
        self.frequencies: Tensor | None
        self.register_buffer("frequencies", frequency_std * drawn if frequencies else None)
        self.input = nn.Linear(dim + 2 * frequencies, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.output = nn.Linear(width, dim)
        if initial_output is not None:
            self._start_constant(initial_output)

    @property
    def takes(self) -> Takes:
        return self.condition.takes

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        embedding = self.condition(noise, condition)
        hidden, features = self.input(self._with_waves(x)), []
        for block in self.blocks[: self.encoder_depth]:
            hidden = block(hidden, embedding)
            features.append(hidden)
        return Encoding(tuple(features), (hidden, embedding, x))

    def decode(self, encoding: Encoding) -> Tensor:
        hidden, embedding, x = encoding.state
        for block in self.blocks[self.encoder_depth :]:
            hidden = block(hidden, embedding)
        output = self.output(hidden)
        return output + x if self.skip else output

    def _with_waves(self, x: Tensor) -> Tensor:
        if self.frequencies is None:
            return x
        exact = torch.promote_types(x.dtype, self.frequencies.dtype)  # waves turn fast: never in half precision
        phase = x.to(exact) @ self.frequencies.to(exact)
        return torch.cat([x, phase.sin().to(x.dtype), phase.cos().to(x.dtype)], dim=1)

    @torch.no_grad()
    def _start_constant(self, values: Sequence[float]) -> None:
        if len(values) != self.sample_shape[0]:
            raise ValueError(
                f"initial_output has one value per entry: expected {self.sample_shape[0]}, got {len(values)}"
            )
        self.output.weight.zero_()
        self.output.bias.copy_(torch.tensor(values))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.condition = nn.Linear(width, width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.activation = nn.SiLU()

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        inner = self.activation(self.first(self.norm(hidden)) + self.condition(condition))
        return hidden + self.second(inner)

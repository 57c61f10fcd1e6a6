"""A generator that is no denoiser: any differentiable map from noise and a condition, as a scene behind a renderer."""

from abc import abstractmethod

from torch import Tensor

from fdistill.models.condition import Condition
from fdistill.models.networks.base import Encoding, Network


class Generator(Network):
    """x = g(z, condition), with any parameters: a student as `Denoiser(Generator, Direct())`, which is g itself.

    A subclass sets `sample_shape` and `num_classes`, gives `takes` where it takes other conditions than one set of
    classes, and `generate`. It may use all of z, the first entries of it, or one to choose a particle by; or none.
    """

    feature_channels = ()
    knows_no_class = False

    @abstractmethod
    def generate(self, z: Tensor, condition: Condition) -> Tensor:
        """Samples [B, *sample_shape] of z, standard normal of the same shape, and the conditions of B samples."""

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        return Encoding((), (x, condition))

    def decode(self, encoding: Encoding) -> Tensor:
        return self.generate(*encoding.state)

"""Scenes of voxels behind a differentiable camera: a generator whose parameters are solids, not a network's weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.scene.shapes import AZIMUTHS, ELEVATIONS, SOLIDS, Camera, view_angles
from fdistill.models.condition import Condition, Takes, count_classes, takes_classes
from fdistill.models.networks import Generator


def render(volume: Tensor, camera: Camera, side: int, samples: int) -> tuple[Tensor, Tensor]:
    """Emission and absorption along the rays of an orthographic camera (Max 1995).

    With density s and colour c at the midpoints of `samples` steps d between -1 and 1 along a ray:
    T_i = exp(-sum_{j<i} s_j d), brightness sum_i T_i (1 - exp(-s_i d)) c_i, opacity 1 - exp(-sum_i s_i d).

    Args:
        volume: density >= 0 (1 / length) and colour in [0, 1] of voxels in [-1, 1]^3, [B, 2, z, y, x]; trilinear
            between their centres, empty outside.
        camera: of B views.
        side: pixels of a side.
        samples: of a ray, >= 1.

    Returns:
        Brightness and opacity, both [B, side, side] in [0, 1].
    """
    step = 2 / samples
    depth = (torch.arange(samples).to(volume) + 0.5) * step - 1
    points = camera.pixels(side)[..., None, :] + camera.forward[:, None, None, None] * depth[:, None]
    density, colour = F.grid_sample(volume, points, align_corners=False).unbind(1)  # [B, side, side, samples]
    absorbed = density * step
    behind = absorbed.cumsum(-1)
    arriving = (absorbed - behind).exp()  # T
    return (arriving * -torch.expm1(-absorbed) * colour).sum(-1), -torch.expm1(-behind[..., -1])


class VoxelScenes(Generator):
    """Some scenes of each shape, drawn from the view that is asked for; the first number of the noise chooses one.

    So a shape is distilled into as many particles, and the same noise shows the same solid from every view.
    """

    sample_shape = (1, 16, 16)

    def __init__(self, particles: int = 4, resolution: int = 16, samples: int = 24) -> None:
        """Args:
        particles: scenes of a shape, >= 1.
        resolution: voxels of a side.
        samples: of a ray.
        """
        super().__init__()
        self.particles, self.samples = particles, samples
        self.num_classes = count_classes(self.takes)
        axis = (torch.arange(resolution) + 0.5) * (2 / resolution) - 1
        radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        fog = torch.stack([2 - 6 * radius, torch.zeros_like(radius)])  # a soft ball in the middle, of medium grey
        self.raw = nn.Parameter(fog + 0.5 * torch.randn(len(SOLIDS), particles, *fog.shape))

    @property
    def takes(self) -> Takes:
        return takes_classes({"shape": len(SOLIDS), "view": AZIMUTHS * len(ELEVATIONS)})

    def volume(self, shape: Tensor, particle: Tensor) -> Tensor:
        """Density and colour of scenes by their numbers int64 [B], [B, 2, resolution, resolution, resolution]."""
        density, colour = self.raw[shape, particle].unbind(1)
        return torch.stack([10 * F.softplus(density), colour.sigmoid()], 1)

    def generate(self, z: Tensor, condition: Condition) -> Tensor:
        chosen = torch.special.ndtr(z.flatten(1)[:, 0]) * self.particles
        volume = self.volume(condition["shape"], chosen.long().clamp_max(self.particles - 1))
        brightness, _ = render(volume, Camera.at(*view_angles(condition["view"])), self.sample_shape[1], self.samples)
        return 2 * brightness[:, None] - 1

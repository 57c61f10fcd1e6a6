"""Five solids from sixteen views: grey pictures made offline, conditioned on shape and view at once."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.data import GenerativeDataModule, InMemorySplit
from fdistill.models.condition import Takes, count_classes, takes_classes

AZIMUTHS, ELEVATIONS = 8, (0.15, 0.65)  # of the conditioned views: every 45 degrees, and radians above the ground
LIGHT = F.normalize(torch.tensor([0.4, -0.7, 0.6]), dim=0)  # stands still in the world, so that shading is of the scene
AMBIENT = 0.35
_NEAR, _STEPS, _HIT = 1.3, 24, 0.01  # rays start so far before the centre


class Camera(NamedTuple):
    """An orthographic camera that looks at the origin; vectors are [B, 3] of unit length."""

    right: Tensor
    up: Tensor
    forward: Tensor

    @classmethod
    def at(cls, azimuth: Tensor, elevation: Tensor) -> "Camera":
        """From these angles in radians, [B]; z points up."""
        (sa, ca), (se, ce) = (azimuth.sin(), azimuth.cos()), (elevation.sin(), elevation.cos())
        right = torch.stack([-sa, ca, torch.zeros_like(sa)], 1)
        up = torch.stack([-se * ca, -se * sa, ce], 1)
        return cls(right, up, -torch.stack([ce * ca, ce * sa, se], 1))

    def pixels(self, side: int) -> Tensor:
        """Centres of side x side pixels of [-1, 1]^2 in the plane through the origin, [B, side, side, 3]."""
        axis = (torch.arange(side).to(self.up) + 0.5) * (2 / side) - 1
        across = self.right[:, None, None] * axis[None, None, :, None]
        return across - self.up[:, None, None] * axis[None, :, None, None]


def view_angles(view: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth and elevation of view numbers [B]: the azimuth runs fastest."""
    elevations = torch.tensor(ELEVATIONS, device=view.device)
    return view % AZIMUTHS * (2 * math.pi / AZIMUTHS), elevations[view // AZIMUTHS]


def held_out_angles() -> tuple[Tensor, Tensor]:
    """Azimuths halfway between the conditioned ones at the elevation between theirs, [8] each."""
    azimuth = (torch.arange(AZIMUTHS) + 0.5) * (2 * math.pi / AZIMUTHS)
    return azimuth, torch.full((AZIMUTHS,), sum(ELEVATIONS) / 2)


def _box(p: Tensor, half: tuple[float, float, float]) -> Tensor:
    q = p.abs() - torch.tensor(half)
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)


def _cone(p: Tensor) -> Tensor:
    radius, z = p[..., :2].norm(dim=-1), p[..., 2]
    slope = F.normalize(torch.tensor([1.0, 0.5]), dim=0)  # of base radius .55 and height 1.1
    return torch.maximum(slope[0] * radius + slope[1] * (z - 0.55), -0.55 - z)


def _torus(p: Tensor) -> Tensor:
    ring = p[..., 1:].norm(dim=-1) - 0.42  # its axis is x: a ring from the front, a bar from the side
    return torch.hypot(ring, p[..., 0]) - 0.17


def _l_shape(p: Tensor) -> Tensor:
    upright = _box(p - torch.tensor([0.0, -0.32, 0.0]), (0.18, 0.18, 0.6))
    return torch.minimum(upright, _box(p - torch.tensor([0.0, 0.1, -0.42]), (0.18, 0.5, 0.18)))


SOLIDS: dict[str, Callable[[Tensor], Tensor]] = {  # distance [...] of points [..., 3], within a ball of radius .8
    "sphere": lambda p: p.norm(dim=-1) - 0.58,
    "cube": lambda p: _box(p, (0.42, 0.42, 0.42)),
    "cone": _cone,
    "torus": _torus,
    "L": _l_shape,
}


class Instances(NamedTuple):
    """What makes one solid differ from another of its shape, each [B]."""

    scale: Tensor
    stretch: Tensor  # of its height
    yaw: Tensor
    albedo: Tensor

    @classmethod
    def draw(cls, n: int, generator: torch.Generator) -> "Instances":
        """n of them: 20% in size, 20% in height, 10 degrees, and half or twice as bright."""
        u = torch.rand(4, n, generator=generator)
        return cls(0.8 + 0.4 * u[0], 0.85 + 0.3 * u[1], (2 * u[2] - 1) * math.radians(10), 0.5 + 0.5 * u[3])

    def rows(self, index: Tensor) -> "Instances":
        """Those with these numbers."""
        return Instances(*(value[index] for value in self))

    def distance(self, solid: Callable[[Tensor], Tensor], p: Tensor) -> Tensor:
        """A lower bound of the distance of points [B, ..., 3] to the solids."""
        scale, stretch, yaw, _ = (value.reshape(-1, *[1] * (p.ndim - 2)) for value in self)
        turned = (yaw.cos() * p[..., 0] + yaw.sin() * p[..., 1], yaw.cos() * p[..., 1] - yaw.sin() * p[..., 0])
        own = torch.stack([*turned, p[..., 2] / stretch], -1) / scale[..., None]
        return solid(own) * scale * stretch.clamp_max(1)


def draw_solid(shape: str, instances: Instances, camera: Camera, side: int) -> tuple[Tensor, Tensor]:
    """Brightness in [0, 1] and whether the solid is hit, both [B, side, side], by sphere tracing at pixel centres."""
    solid, forward = SOLIDS[shape], camera.forward[:, None, None]
    p = camera.pixels(side) - _NEAR * forward
    for _ in range(_STEPS):
        near = instances.distance(solid, p)
        p = p + near[..., None] * forward
    hit, step = instances.distance(solid, p) < _HIT, 1e-3 * torch.eye(3)
    here = instances.distance(solid, p)
    normal = F.normalize(torch.stack([instances.distance(solid, p + axis) - here for axis in step], -1), dim=-1)
    lit = AMBIENT + (1 - AMBIENT) * (normal @ LIGHT).clamp_min(0)
    return hit * lit * instances.albedo[:, None, None], hit


class Shapes(GenerativeDataModule):
    """Five shapes from 16 views, 16x16 grey pictures in [-1, 1] on black; the network takes "shape" and "view".

    Every instance is seen from every view; sizes, heights, angles and brightness of instances differ.
    """

    sample_shape = (1, 16, 16)

    def __init__(
        self, batch_size: int = 64, instances: int = 32, held_out: int = 8, seed: int = 0, num_workers: int = 0
    ) -> None:
        """Args:
        batch_size: samples per batch and rank.
        instances: of each shape, >= 1.
        held_out: instances of the held-out split, >= 1.
        seed: of the order of the training stream; the instances are always the same.
        num_workers: processes that fetch batches.
        """
        super().__init__(batch_size, seed, num_workers)
        self.instances, self.held_out = instances, held_out

    @property
    def takes(self) -> Takes:
        return takes_classes({"shape": len(SOLIDS), "view": AZIMUTHS * len(ELEVATIONS)})

    @property
    def num_classes(self) -> int:
        return count_classes(self.takes)

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        return self._pictures(self.instances, 0), self._pictures(self.held_out, 1)

    def _pictures(self, n: int, split: int) -> InMemorySplit:
        views = self.takes["view"].classes
        camera, drawn = Camera.at(*view_angles(torch.arange(views).repeat(n))), []
        for number, shape in enumerate(SOLIDS):
            instances = Instances.draw(n, generator_for(split, number))
            each = instances.rows(torch.arange(n).repeat_interleave(views))
            fine, _ = draw_solid(shape, each, camera, 2 * self.sample_shape[1])
            drawn.append(2 * F.avg_pool2d(fine[:, None], 2) - 1)  # four rays a pixel
        labels = (torch.arange(len(SOLIDS))[:, None] * views + torch.arange(views).repeat(n)).flatten()
        return InMemorySplit(torch.cat(drawn), labels)

"""A scene distilled from a diffusion model of pictures: the student is voxels behind a camera (docs/scenes.md)."""

from examples.scene.shapes import Shapes
from examples.scene.voxels import VoxelScenes

__all__ = ["Shapes", "VoxelScenes"]

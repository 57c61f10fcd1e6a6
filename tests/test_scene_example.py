"""examples/scene: its renderer is emission and absorption, its solids are what the camera sees, its scenes learn."""

import sys

import pytest
import torch
from repository import ROOT
from tiny_runs import adam, fit

from fdistill.io.load import load_model
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.objectives import SDS, VSD, UniInstruct
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM, Direct
from fdistill.training import DistillationModule

sys.path.append(str(ROOT))
from examples.scene import Shapes, VoxelScenes  # where the path has just been added
from examples.scene.shapes import SOLIDS, Camera, Instances, draw_solid, held_out_angles
from examples.scene.voxels import render


def camera(*angles):
    return Camera.at(*torch.tensor(angles, dtype=torch.float64).T)


def test_cameras_are_right_handed_and_orthonormal():
    seen = camera([0.0, 0.0], [2.0, 0.6], [-1.0, -0.4])
    axes = torch.stack(seen, 1)
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))
    torch.testing.assert_close(torch.linalg.cross(seen.right, seen.forward), seen.up)
    torch.testing.assert_close(seen.forward[0], torch.tensor([-1.0, 0, 0], dtype=torch.float64))


def test_the_gradient_of_the_renderer_is_that_of_finite_differences():
    volume = torch.rand(1, 2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda v: render(v, camera([0.4, 0.3]), 2, 5), volume.requires_grad_())


@pytest.mark.parametrize("density", [0.1, 2.0])
def test_a_uniform_slab_absorbs_by_beer_and_lambert(density):
    volume = torch.full((1, 2, 8, 8, 8), 0.6, dtype=torch.float64)
    volume[:, 0], volume[:, 0, ..., 2:6] = 0, density  # four voxels of 1/4 each
    brightness, opacity = render(volume, camera([0.0, 0.0]), 1, 32)
    absorbed = 1 - torch.tensor(-density, dtype=torch.float64).exp()
    torch.testing.assert_close(opacity.squeeze(), absorbed, rtol=1e-12, atol=0)
    torch.testing.assert_close(brightness.squeeze(), 0.6 * absorbed, rtol=1e-12, atol=0)


def test_what_lies_in_front_hides_what_lies_behind():
    volume = torch.zeros(1, 2, 8, 8, 8, dtype=torch.float64)
    volume[:, 1, ..., :4], volume[:, 1, ..., 4:] = 0.9, 0.2
    volume[:, 0, ..., 1:3], volume[:, 0, ..., 5:7] = 3.0, 2.0
    behind, front = (-0.5 * torch.tensor([3.0, 2.0], dtype=torch.float64)).exp()  # of two voxels of 1/4 each
    for azimuth, first, second, colours in ((0.0, front, behind, (0.2, 0.9)), (torch.pi, behind, front, (0.9, 0.2))):
        brightness, _ = render(volume, camera([azimuth, 0.0]), 1, 32)
        expected = colours[0] * (1 - first) + colours[1] * first * (1 - second)
        torch.testing.assert_close(brightness.squeeze(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", SOLIDS)
def test_voxels_of_a_solid_have_its_silhouettes(shape):
    instances = Instances.draw(1, torch.Generator().manual_seed(1))
    axis = (torch.arange(32) + 0.5) / 16 - 1
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    distance = instances.distance(SOLIDS[shape], torch.stack([x, y, z], -1)[None])
    density = 50 * (-16 * distance).clamp(0, 1)  # rises within a voxel below the surface
    views = Camera.at(*held_out_angles())
    _, opacity = render(torch.stack([density, density], 1).expand(8, 2, 32, 32, 32), views, 32, 64)
    _, hit = draw_solid(shape, instances.rows(torch.zeros(8).long()), views, 32)
    union, both = ((opacity > 0.5) | hit).sum(), ((opacity > 0.5) & hit).sum()
    assert both > 0.85 * union


@pytest.fixture(scope="module")
def data():
    return Shapes(batch_size=4, instances=1, held_out=1)


def test_every_shape_is_there_from_every_view(data):
    split = data.train_samples
    assert split.labels.tolist() == list(range(80))
    assert split.x.min() == -1
    assert (split.x.flatten(1).amax(1) > -0.8).all()


def test_the_noise_chooses_a_scene_and_the_view_does_not():
    scenes, z = VoxelScenes(particles=3, resolution=4, samples=4), torch.zeros(3, 1, 16, 16)
    z[:, 0, 0, 0] = torch.tensor([-2.0, 0.0, 2.0])
    views = torch.tensor([0, 5, 9])
    made = [scenes.generate(z, Condition({"shape": torch.full((3,), 2), "view": view.expand(3)})) for view in views]
    for turned, picture in zip(views, made, strict=True):
        for particle in range(3):
            alone = VoxelScenes(particles=1, resolution=4, samples=4)
            alone.raw.data[2, 0] = scenes.raw.data[2, particle]
            of = Condition({"shape": torch.tensor([2]), "view": turned[None]})
            torch.testing.assert_close(alone.generate(z[:1], of)[0], picture[particle])


@pytest.mark.parametrize("build", [SDS, VSD, lambda: UniInstruct(JensenShannon())], ids=["SDS", "VSD", "Uni-Instruct"])
def test_scenes_learn_by_turns_and_come_back_from_their_checkpoint(build, data, tmp_path):
    network = SmallUNet(16, widths=(8,), num_classes={"shape": 5, "view": 16})
    module = DistillationModule(
        Denoiser(network, EDM(0.5)),
        build(),
        LogNormal(0.0, 1.0),
        adam,
        adam,
        sigma_init=1.0,
        student=Denoiser(VoxelScenes(2, 4, 4), Direct()),
        turn="fused",
    )
    before = module.student.network.raw.detach().clone()
    fit(module, 2, data).save_checkpoint(tmp_path / "run.ckpt")
    assert (module.student.network.raw != before).any(dim=-1).float().mean() > 0.05
    assert torch.equal(load_model(tmp_path / "run.ckpt").denoiser.network.raw, module.ema.average.network.raw)

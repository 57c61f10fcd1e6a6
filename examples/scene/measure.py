"""Silhouettes and diversity of distilled scenes, beside the teacher's pictures and voxels fitted to true ones.

python -m examples.scene.measure runs/scene/{sds,vsd}-{0,1,2} --teacher runs/scene/teacher --out runs/scene
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

import fdistill
from examples.scene.shapes import SOLIDS, Camera, Instances, draw_solid, held_out_angles, view_angles
from examples.scene.voxels import VoxelScenes, render
from fdistill.core.random import generator_for

CANDIDATES, FINE = 48, 32  # true solids that a scene may be, and pixels of a side of a silhouette
VIEWS = 16
ANGLES = [torch.cat(pair) for pair in zip(view_angles(torch.arange(VIEWS)), held_out_angles(), strict=True)]
SHOWN = [0, 17, 2, 21]  # of ANGLES: front and side are conditioned, those between are not


def cameras(repeats: int) -> Camera:
    """All views, the conditioned ones first, for each of so many solids."""
    return Camera.at(*(angle.repeat(repeats) for angle in ANGLES))


def true_solids(shape: int, n: int, side: int) -> tuple[Tensor, Tensor]:
    """Pictures and silhouettes of n instances that no training picture shows, [n, views, side, side]."""
    instances = Instances.draw(n, generator_for(2, shape)).rows(torch.arange(n).repeat_interleave(len(ANGLES[0])))
    drawn = draw_solid(list(SOLIDS)[shape], instances, cameras(n), side)
    return drawn[0].unflatten(0, (n, -1)), drawn[1].unflatten(0, (n, -1))


@torch.no_grad()
def seen(scenes: VoxelScenes, shape: int, side: int) -> tuple[Tensor, Tensor]:
    """Pictures and opacities of all scenes of a shape, [particles, views, side, side]."""
    each = torch.arange(scenes.particles).repeat_interleave(len(ANGLES[0]))
    volume = scenes.volume(torch.full_like(each, shape), each)
    found = render(volume, cameras(scenes.particles), side, 2 * scenes.samples)
    return found[0].unflatten(0, (scenes.particles, -1)), found[1].unflatten(0, (scenes.particles, -1))


def overlaps(opaque: Tensor, true: Tensor) -> Tensor:
    """Intersection over union at conditioned and held-out views, [particles, 2].

    Each scene is held against the true solid that fits it best at the conditioned views.
    """
    both, either = ((op(opaque[:, None], true[None])).sum((-1, -2)) for op in (torch.logical_and, torch.logical_or))
    iou = both / either.clamp_min(1)  # [particles, candidates, views]
    best = iou[:, :, :VIEWS].mean(2).argmax(1)
    chosen = iou[torch.arange(len(iou)), best]
    return torch.stack([chosen[:, :VIEWS].mean(1), chosen[:, VIEWS:].mean(1)], 1)


def spreads(shapes: Sequence[Tensor]) -> dict[str, float]:
    """Root mean square distance of pixels in [0, 1] between two pictures of one shape and view, mean over shapes.

    The coarse one is of means over 4x4 pixels: size and brightness, without speckle. Pictures are [n, views, 16, 16].
    """
    found = {"spread": list(shapes), "spread_coarse": [F.avg_pool2d(pictures, 4) for pictures in shapes]}
    return {name: sum(float((2 * p.var(0).mean()).sqrt()) for p in of) / len(of) for name, of in found.items()}


def fitted(pictures: Tensor, steps: int = 150) -> VoxelScenes:
    """Scenes of two true solids of each shape, by least squares at the views of [shapes, 2, views, 16, 16]."""
    torch.manual_seed(0)
    scenes, (shapes, each) = VoxelScenes(2), torch.meshgrid(torch.arange(len(SOLIDS)), torch.arange(2), indexing="ij")
    optimizer = torch.optim.Adam(scenes.parameters(), lr=0.05, betas=(0.9, 0.99))
    for step in range(steps):
        view = torch.randint(VIEWS, (3, *shapes.shape), generator=generator_for(step))
        volume = scenes.volume(shapes.expand_as(view).flatten(), each.expand_as(view).flatten())
        brightness, _ = render(volume, Camera.at(*view_angles(view.flatten())), 16, scenes.samples)
        wanted = pictures[shapes, each, view].flatten(0, 2)
        loss = (brightness - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scenes


def measured(scenes: VoxelScenes, true: list[Tensor]) -> dict[str, float]:
    """The numbers of one run, means over shapes and particles."""
    iou = torch.stack([overlaps(seen(scenes, shape, FINE)[1] > 0.5, true[shape]).mean(0) for shape in range(len(true))])
    pictures = [seen(scenes, shape, 16)[0][:, :VIEWS] for shape in range(len(true))]
    by_shape = {f"iou_{name}": round(float(value), 3) for name, value in zip(SOLIDS, iou[:, 1], strict=True)}
    conditioned, held_out = iou.mean(0).tolist()
    return {"iou": conditioned, "iou_held_out": held_out, **spreads(pictures), **by_shape}


def teacher_pictures(checkpoint: Path, n: int) -> Tensor:
    """n independent pictures of each shape and view in [0, 1], [shapes, n, views, 16, 16]."""
    model = fdistill.load(checkpoint)
    numbers = torch.arange(model.num_classes).repeat_interleave(n)
    pictures = model.sample(model.noise(len(numbers), 0), numbers)[:, 0]
    return ((pictures + 1) / 2).clamp(0, 1).unflatten(0, (len(SOLIDS), VIEWS, n)).transpose(1, 2)


def picture(blocks: dict[str, list[Tensor]], file: Path, zoom: int = 3) -> None:
    """Two solids of each shape below each other, and blocks of views beside each other."""
    columns = []
    for shown in blocks.values():
        rows = torch.cat([torch.cat(list(solid), 1) for shape in shown for solid in shape[:2]])
        columns.append(F.pad(rows, (2, 2)))
    drawn = (torch.cat(columns, 1).clamp(0, 1) * 255).round().byte().numpy()
    image = Image.fromarray(drawn).resize((drawn.shape[1] * zoom, drawn.shape[0] * zoom), Image.Resampling.NEAREST)
    sheet = Image.new("L", (image.width, image.height + 16), 0)
    sheet.paste(image, (0, 16))
    for place, name in enumerate(blocks):
        ImageDraw.Draw(sheet).text((place * image.width // len(blocks) + 4, 2), name, fill=255)
    sheet.save(file, optimize=True)


def main() -> None:
    """Write scenes.json and scenes.png, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs with VoxelScenes")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the teacher's run")
    parser.add_argument("--out", type=Path, default=Path("runs/scene"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    last = "checkpoints/last.ckpt"
    numbers = range(len(SOLIDS))
    true = [true_solids(shape, CANDIDATES, FINE)[1] for shape in numbers]
    data = [true_solids(shape, CANDIDATES, 16)[0] for shape in numbers]
    teacher = teacher_pictures(arguments.teacher / last, 8)
    rows = {"data": spreads([solid[:, :VIEWS] for solid in data])}
    rows["teacher"] = spreads(teacher)
    pictures = torch.stack([solid[:2, :VIEWS] for solid in data])
    scenes = {"start": VoxelScenes(), "fitted": fitted(pictures)}
    scenes |= {run.name: fdistill.load(run / last).denoiser.network for run in arguments.runs}
    blocks = {"true solids": [solid[:, SHOWN] for solid in data], "teacher": [t[:, [0, 1, 2, 5]] for t in teacher]}
    for name, found in scenes.items():
        rows[name] = measured(found, true)
        if name == "fitted" or name.endswith("-0"):
            blocks[name.removesuffix("-0")] = [seen(found, shape, 16)[0][:, SHOWN] for shape in numbers]
    for name, row in rows.items():
        print(f"{name:>16}  " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    (arguments.out / "scenes.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    picture(blocks, arguments.out / "scenes.png")


if __name__ == "__main__":
    main()

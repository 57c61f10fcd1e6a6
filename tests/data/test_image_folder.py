"""Folders of images: geometry, classes, mirror images, and one clear line for every unusable folder."""

import numpy as np
import pytest
import torch
from PIL import Image

from fdistill.data import ImageFolder


def save(path, width=12, height=12, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def flat(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:02}.png", seed=i)
    return tmp_path


def pixels_of(split):
    return {tuple(x.flatten().tolist()) for x in split.x}


def test_images_of_the_right_size_keep_their_pixels(flat):
    data = ImageFolder(flat, resolution=12)
    ours = (
        ((torch.cat([data.train_samples.copied().x, data.held_out_samples.copied().x]) + 1) * 127.5)
        .round()
        .permute(0, 2, 3, 1)
    )
    theirs = [np.asarray(Image.open(file)) for file in sorted(flat.iterdir())]
    assert {x.byte().numpy().tobytes() for x in ours} == {x.tobytes() for x in theirs}


def test_the_splits_are_disjoint_and_complete(flat):
    data = ImageFolder(flat, resolution=12, held_out_fraction=0.25)
    train, held_out = pixels_of(data.train_samples.copied()), pixels_of(data.held_out_samples.copied())
    assert (len(train), len(held_out), len(train | held_out)) == (15, 5, 20)


@pytest.mark.parametrize(("width", "height"), [(20, 8), (8, 20), (9, 8), (8, 8)])
def test_the_central_square_is_kept(tmp_path, width, height):
    for i in range(2):
        pixels = save(tmp_path / f"{i}.png", width, height, seed=3)
    left, top = (width - 8) // 2, (height - 8) // 2
    centre = torch.from_numpy(pixels[top : top + 8, left : left + 8]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(ImageFolder(tmp_path, resolution=8).train_samples.copied().x[0], centre)


def test_downscaling_is_antialiased(tmp_path):
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    for i in range(2):
        Image.fromarray(checkerboard).save(tmp_path / f"{i}.png")
    x = ImageFolder(tmp_path, resolution=8, channels=1).train_samples.copied().x
    assert x.shape == (1, 1, 8, 8)
    assert x.abs().max() < 0.05  # without a low-pass filter every pixel would be -1 or 1


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (3, "RGBA")])
def test_colours_are_converted(tmp_path, channels, mode):
    for i in range(2):
        save(tmp_path / f"{i}.png", seed=i, mode=mode)
    x = ImageFolder(tmp_path, resolution=6, channels=channels).train_samples.copied().x
    assert x.shape == (1, channels, 6, 6)
    assert mode != "L" or torch.equal(x[:, 0], x[:, 2])


def test_black_and_white_are_minus_one_and_one(tmp_path):
    for name, value in (("black", 0), ("white", 255)):
        Image.new("L", (9, 9), value).save(tmp_path / f"{name}.png")
    data = ImageFolder(tmp_path, resolution=4)
    values = torch.cat([data.train_samples.copied().x, data.held_out_samples.copied().x]).flatten(1)
    assert sorted(values.unique(dim=1).flatten().tolist()) == [-1, 1]


def test_rotated_photographs_are_turned_upright(tmp_path):
    image = Image.fromarray(np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[:, None], 16, axis=1))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    for i in range(2):
        image.save(tmp_path / f"{i}.jpg", exif=exif, quality=95)
    x = ImageFolder(tmp_path, resolution=16, channels=1).train_samples.copied().x[0, 0]
    assert x[0].mean() > 0.5 > -0.5 > x[-1].mean()


def test_sorted_sub_folders_are_the_classes_and_are_split_in_proportion(tmp_path):
    for name, count in (("zebra", 10), ("ant", 30)):
        for i in range(count):
            path = tmp_path / name / f"{i}.JPG"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (4, 4), 255 if name == "zebra" else 0).save(path)
    data = ImageFolder(tmp_path, resolution=4, channels=1, held_out_fraction=0.2)
    assert (data.class_names, data.num_classes) == (["ant", "zebra"], 2)
    assert data.held_out_samples.labels.bincount().tolist() == [6, 2]
    for split in (data.train_samples.copied(), data.held_out_samples.copied()):
        assert torch.equal((split.x.mean(dim=(1, 2, 3)) > 0).long(), split.classes)


def test_an_unlabelled_folder_has_no_classes(flat):
    data = ImageFolder(flat, resolution=8)
    assert data.num_classes == 0
    assert not data.train_samples.labels.any()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_with_flips_is_every_training_image_and_its_mirror_image_once(flat, num_workers):
    data = ImageFolder(flat, resolution=12, horizontal_flip=True, batch_size=36, num_workers=num_workers)
    x = data.train_samples.copied().x
    assert len(x) == 18
    loader = iter(data.train_dataloader())
    epochs = [next(loader) for _ in range(2)]
    both = sorted(torch.cat([x, x.flip(-1)]).flatten(1).tolist())
    assert all(sorted(epoch.x.flatten(1).tolist()) == both for epoch in epochs)
    assert not torch.equal(epochs[0].x, epochs[1].x)
    assert torch.equal(torch.cat([b.x for b in data.val_dataloader()]), data.held_out_samples.copied().x)


def test_the_held_out_split_is_never_empty(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", seed=i)
    data = ImageFolder(tmp_path, resolution=4, held_out_fraction=0.01)
    assert (len(data.train_samples), len(data.held_out_samples)) == (2, 1)


def test_other_files_and_hidden_files_are_passed_over(flat):
    (flat / "notes.txt").write_text("not an image")
    (flat / ".hidden.png").write_bytes(b"not an image")
    (flat / ".thumbnails").mkdir()
    data = ImageFolder(flat, resolution=4)
    assert len(data.train_samples) + len(data.held_out_samples) == 20


def test_a_truncated_or_broken_image_is_named(flat):
    file = flat / "07.png"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"hello", whole[:60] + bytes(40) + whole[100:]):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="decode"):
            _ = ImageFolder(flat, resolution=4).train_samples.copied()


def test_sixteen_bit_images_are_refused_and_not_clipped(flat):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(flat / "deep.png")
    with pytest.raises(ValueError, match="deep"):
        _ = ImageFolder(flat, resolution=4).train_samples.copied()


def test_unusable_folders_are_refused(tmp_path, flat):
    def split_of(folder):
        return ImageFolder(folder, resolution=4).train_samples.copied()

    with pytest.raises(ValueError, match="folder"):
        split_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="folder"):
        split_of(flat / "00.png")
    (flat / "class_a").mkdir()
    with pytest.raises(ValueError, match="got none in"):
        split_of(flat / "class_a")
    save(flat / "class_a" / "0.png")
    with pytest.raises(ValueError, match="expected >= 2, got 1"):
        split_of(flat / "class_a")
    with pytest.raises(ValueError, match="class_a"):
        split_of(flat)


def test_class_folders_without_images_or_with_one_each_are_refused(tmp_path):
    for name in "ab":
        save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match="classes"):
        _ = ImageFolder(tmp_path, resolution=4).train_samples.copied()
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"got none in \['c'\]"):
        _ = ImageFolder(tmp_path, resolution=4).num_classes


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"resolution": 0}, "resolution >= 1"),
        ({"channels": 4}, "expected 1 or 3, got 4"),
        ({"held_out_fraction": 0.0}, "held_out_fraction"),
        ({"held_out_fraction": 1.0}, "held_out_fraction"),
    ],
)
def test_arguments_out_of_range_are_refused(flat, bad, match):
    with pytest.raises(ValueError, match=match):
        ImageFolder(**{"folder": flat, "resolution": 4} | bad)

"""What a folder of images means, and an archive alike: files left out, classes, splits, numbered parts."""

import json
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from fdistill.data import ImageFolder
from fdistill.evaluation.sources import ImageFolderSource, open_source


def write(root, names):
    """Files of these names; each image is of one grey, 10 times its place among them. Other files hold a word."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff", ".gif", ".ppm"):
            Image.new("RGB", (4, 4), (10 * i,) * 3).save(path)
        else:
            path.write_text("word")
    return root


def pack_zip(root, target, compression=zipfile.ZIP_STORED, below=""):
    with zipfile.ZipFile(target, "w", compression) as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, f"{below}{file.relative_to(root)}")
    return target


def pack_tar(root, target, below=""):
    with tarfile.open(target, "w") as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.add(file, f"{below}{file.relative_to(root)}", recursive=False)
    return target


def as_folder(root, tmp_path):
    return root


def as_zip(root, tmp_path):
    return pack_zip(root, tmp_path / "packed.zip")


def as_tar(root, tmp_path):
    return pack_tar(root, tmp_path / "packed.tar")


@pytest.fixture(params=[as_folder, as_zip, as_tar])
def form(request, tmp_path):
    """A function from a folder to itself or an archive of it."""
    return lambda root: request.param(root, tmp_path)


def classes(path):
    """Names of the classes, and of each image its class and its grey, in order."""
    data = ImageFolder(path, 4)
    everything = data.everything()
    greys = [round(int(everything.read([i])[0].float().mean()) / 10) for i in range(len(everything))]
    return data.class_names, list(zip(everything.labels.tolist(), greys, strict=True))


def said(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = ImageFolder(path, 4).num_classes
    return [str(each.message) for each in caught]


def refusal(path):
    with pytest.raises(ValueError, match=r"\w") as error:
        _ = ImageFolder(path, 4).num_classes
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_format_that_pil_reads_exactly_is_read(form, tmp_path):
    names = ["0.png", "1.BMP", "2.webp", "3.tiff", "4.gif", "5.ppm", "6.JPEG"]
    path = form(write(tmp_path / "images", names))
    assert classes(path) == ([], [(0, i) for i in range(7)])
    assert said(path) == []


def test_what_is_left_out_is_counted_and_named_once(form, tmp_path):
    left = ["x/a.heic", "x/b.heic", "x/.c.png", "x/d.mp4", "x/metadata.jsonl", "labels.csv"]
    beside = ["x/a.txt", "notes.json", "x/Thumbs.db", "x/.DS_Store", "README", ".git/e.png", "__MACOSX/f.png"]
    path = form(write(tmp_path / "images", ["x/0.png", "x/1.png", "y/2.png", *left, *beside]))
    (line,) = said(path)
    for words in ("2 .heic (x/a.heic)", "1 hidden (x/.c.png)", "1 .mp4", "2 of labels or captions (labels.csv)"):
        assert words in line
    assert ".txt" not in line
    assert classes(path) == (["x", "y"], [(0, 0), (0, 1), (1, 2)])


def test_links_that_lead_nowhere_and_empty_files_are_refused(tmp_path):
    write(tmp_path, ["0.png", "1.png"])
    for i in range(3):
        (tmp_path / f"link{i}.png").symlink_to("/nowhere")
    assert "3 of 5" in refusal(tmp_path)
    for i in range(3):
        (tmp_path / f"link{i}.png").unlink()
    (tmp_path / "2.webp").touch()
    assert "2.webp" in refusal(tmp_path)
    (tmp_path / "2.webp").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert "link" in refusal(tmp_path)


EDM = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png"]


def test_dataset_json_gives_the_classes(form, tmp_path):
    root = write(tmp_path / "edm", EDM)
    (root / "dataset.json").write_text(json.dumps({"labels": [[EDM[1], 0], [EDM[0], 2], [EDM[2], 2]]}))
    assert classes(form(root)) == (["0", "1", "2"], [(2, 0), (0, 1), (2, 2)])


def test_null_labels_are_no_classes(form, tmp_path):
    root = write(tmp_path / "edm", EDM)
    (root / "dataset.json").write_text('{"labels": null}')
    assert classes(form(root)) == ([], [(0, 0), (0, 1), (0, 2)])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [[EDM[0], 0], [EDM[1], 1]]}, f"no label for 1 of 3 images, {EDM[2]}"),
        ({"labels": [[name, 0] for name in [*EDM, "gone.png"]]}, "gone.png"),
        ({"labels": [[EDM[0], 0], [EDM[0], 1]]}, "two for"),
        ({"labels": [[EDM[0], -1]]}, "-1"),
        ({"labels": [[EDM[0], [0.0, 1.0]]]}, "numbers from 0"),
        ({"labels": {"a": 1}}, "null"),
        ({"images": []}, "null"),
        ([], "null"),
        ("[" * 100_000, "null"),
    ],
)
def test_a_dataset_json_that_does_not_fit_is_refused(form, content, words, tmp_path):
    root = write(tmp_path / "edm", EDM)
    (root / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    message = refusal(form(root))
    assert words in message
    assert "dataset.json" in message


def test_numbered_parts_without_dataset_json_are_not_taken_for_classes(form, tmp_path):
    message = refusal(form(write(tmp_path / "edm", EDM)))
    assert "dataset.json" in message
    assert "00000, 00001" in message


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val2017"), ("trainA", "testB"), ("test", "valid")])
def test_splits_are_not_taken_for_classes(form, names, tmp_path):
    flat = write(tmp_path / "flat", [f"{name}/{i}.png" for name in names for i in range(2)])
    deep = write(tmp_path / "deep", [f"{name}/{c}/{c}.png" for name in names for c in "ab"])
    assert "splits" in refusal(form(flat))
    assert "one level deeper" in refusal(form(deep))
    assert str(flat / names[0]) in refusal(flat)


def test_a_class_may_be_called_like_a_split(form, tmp_path):
    root = write(tmp_path / "vehicles", ["bus/0.png", "train/1.png", "training_wheels/2.png"])
    assert classes(form(root))[0] == ["bus", "train", "training_wheels"]
    assert "splits" in refusal(write(tmp_path / "train_only", ["train/0.png", "train/1.png"]))


def test_a_folder_one_level_too_high_is_refused_and_one_that_was_packed_is_not(tmp_path):
    root = write(tmp_path / "outer", ["photos/a/0.png", "photos/b/1.png"])
    assert f"one level deeper; give {root / 'photos'}" in refusal(root)
    for packed in (pack_zip(root, tmp_path / "one.zip"), pack_tar(root, tmp_path / "one.tar", "./x/")):
        assert classes(packed) == (["a", "b"], [(0, 0), (1, 1)])
    flat = write(tmp_path / "flat", ["0.png", "1.png"])
    assert classes(pack_tar(flat, tmp_path / "flat.tar", "photos/")) == ([], [(0, 0), (0, 1)])


def test_deeper_images_count_for_their_class_folder_and_it_is_said(form, tmp_path):
    path = form(write(tmp_path / "tiny", ["a/images/0.png", "a/1.png", "b/images/x/2.png"]))
    assert classes(path) == (["a", "b"], [(0, 1), (0, 0), (1, 2)])
    assert any("2 images lie deeper" in line for line in said(path))


def test_a_single_class_and_numbers_out_of_order_are_said(form, tmp_path):
    path = form(write(tmp_path / "numbers", [f"{i}/{i}.png" for i in range(11)]))
    assert classes(path)[0][:3] == ["0", "1", "10"]
    assert any("label 2 is the folder 10" in line for line in said(path))
    padded = write(tmp_path / "padded", [f"{i:02}/{i}.png" for i in range(11)])
    assert said(padded) == []
    one = write(tmp_path / "one", ["celeba/0.png", "celeba/1.png"])
    assert any(f"give {one / 'celeba'}" in line for line in said(one))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.7z"])
def test_compressed_archives_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    assert "uncompressed" in refusal(tmp_path / name)
    assert name in refusal(tmp_path)
    pack_tar(write(tmp_path / "images", ["0.png", "1.png"]), tmp_path / "a.tar")
    assert "uncompressed" in refusal(tmp_path)


def test_zips_that_are_not_trusted_are_refused(tmp_path):
    root = write(tmp_path / "images", ["0.png", "1.png"])
    assert "zip -0" in refusal(pack_zip(root, tmp_path / "deflated.zip", zipfile.ZIP_DEFLATED))
    whole = pack_zip(root, tmp_path / "whole.zip").read_bytes()
    for content in (whole[:-30], whole[:200], b"", whole.replace(b"PK\3\4", b"PK\3\5")):
        (tmp_path / "broken.zip").write_bytes(content)
        assert "uncompressed" in refusal(tmp_path / "broken.zip")
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, b"/etc/passwd")
    assert "link" in refusal(tmp_path / "link.zip")


def test_folders_of_something_else_say_what_was_found(tmp_path):
    write(tmp_path / "latents", ["latents-00000.safetensors", "latents.json"])
    assert "LatentFolder" in refusal(tmp_path / "latents")
    write(tmp_path / "arrays", ["a.npy", "b.pt"])
    assert "a.npy" in refusal(tmp_path / "arrays")


def test_evaluated_folders_are_listed_by_the_same_rules(form, tmp_path):
    root = write(tmp_path / "edm", [*EDM, "00000/x.heic"])
    with pytest.raises(ValueError, match="dataset"):
        open_source(form(root))
    (root / "dataset.json").write_text(json.dumps({"labels": [[name, 1] for name in EDM]}))
    with pytest.warns(UserWarning, match="heic"):
        source = open_source(form(root))
    assert type(source) is ImageFolderSource
    assert (source.num_classes, source.sample_shape) == (2, (3, 4, 4))
    assert np.isclose(sorted((source.draw(3, 0).mean((1, 2, 3)) + 1) * 127.5), [0, 10, 20], atol=0.01).all()


def test_the_first_images_grey_takes_no_colour_from_the_others(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "0.png")
    Image.new("L", (4, 4), 9).save(tmp_path / "1.png")
    assert ImageFolderSource(tmp_path).sample_shape == (1, 4, 4)
    Image.new("RGB", (4, 4), (9, 0, 0)).save(tmp_path / "2.png")
    assert ImageFolderSource(tmp_path).sample_shape == (3, 4, 4)

"""Images that are read when they are needed: the samples of those in memory, bit for bit, from files and from tars."""

import io
import os
import pickle
import tarfile
from itertools import islice

import pytest
import torch
from latent_folders import pictures
from PIL import Image

from fdistill.data import ImageFolder
from fdistill.data.image_files import UnreadableImage, packed, read_image

pytestmark = pytest.mark.system  # seconds, too many for make check

SETTINGS = {"resolution": 6, "horizontal_flip": True, "batch_size": 7, "held_out_fraction": 0.2, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 JPEG files in three classes."""
    return pictures(tmp_path_factory.mktemp("jpeg"), 30, classes=3, side=9, suffix="jpg")


def pack(files, root, target, shards=2):
    """Every n-th file in each .tar, in an order that is not theirs."""
    target.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(target / f"{shard:03}.tar", "w") as archive:
            for file in sorted(files, reverse=True)[shard::shards]:
                archive.add(file, f"./{file.relative_to(root)}")
    return target


@pytest.fixture(scope="module")
def tars(folder, tmp_path_factory):
    return pack(list(folder.rglob("*.jpg")), folder, tmp_path_factory.mktemp("packed") / "tars")


def batches(data, n=9, first=0):
    data.load_state_dict({"batches_seen": first})
    return list(islice(data.train_dataloader(), n))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.classes, other.classes)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("source", ["folder", "tars"])
def test_the_samples_are_those_in_memory(source, num_workers, folder, tars):
    data = ImageFolder({"folder": folder, "tars": tars}[source], **SETTINGS, num_workers=num_workers, in_memory=False)
    memory = ImageFolder(folder, **SETTINGS)
    assert (data.num_classes, data.class_names) == (3, ["a", "b", "c"])
    assert_same(batches(data), batches(memory))  # more than one epoch
    assert_same(data.val_dataloader(), memory.val_dataloader())
    assert_same(
        [data.train_samples.copied(), data.held_out_samples.copied()],
        [memory.train_samples.copied(), memory.held_out_samples.copied()],
    )
    assert data.data_std() == memory.data_std()


def test_a_stream_continues_where_it_was_left(folder):
    whole = batches(ImageFolder(folder, **SETTINGS, in_memory=False), 12)
    assert_same(batches(ImageFolder(folder, **SETTINGS, in_memory=False, num_workers=1), 5, first=7), whole[7:])


def test_tars_may_be_read_into_memory_too(folder, tars):
    assert_same(batches(ImageFolder(tars, **SETTINGS)), batches(ImageFolder(folder, **SETTINGS)))


def test_metrics_read_an_even_part_that_no_seed_changes(folder):
    parts = [ImageFolder(folder, **SETTINGS | {"seed": s}, in_memory=False, metric_samples=10) for s in (0, 1)]
    one, other = (data.train_samples.copied() for data in parts)
    assert torch.equal(one.x, other.x)
    everything = ImageFolder(folder, **SETTINGS).train_samples.copied().x
    places = [(everything == x).flatten(1).all(1).nonzero().item() for x in one.x]
    assert (len(places), places == sorted(set(places))) == (10, True)
    assert max(places) > 12  # not the first ones


def test_a_broken_image_is_told_in_one_line_by_a_worker_too(folder, tmp_path):
    copied = pictures(tmp_path / "copied", 30, classes=3, suffix="jpg")
    for file in copied.rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:40])
    for workers in (0, 1):
        data = ImageFolder(copied, 6, in_memory=False, num_workers=workers)
        with pytest.raises(UnreadableImage, match="decode") as error:
            batches(data, 1)
        assert "\n" not in str(error.value)
    (copied / "a" / "000.jpg").unlink()
    with pytest.raises(UnreadableImage, match="open"):
        _ = data.everything()[0]


def test_class_numbers_beside_the_images_are_their_classes(folder, tmp_path):
    files = sorted(folder.rglob("*.jpg"))
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for file in files[shard::2]:
                archive.add(file, f"sample{file.stem}.jpg")
                add(archive, f"sample{file.stem}.cls", b"%d\n" % (int(file.stem) % 5))
                add(archive, f"sample{file.stem}.json", b"{}")
    data = ImageFolder(tmp_path, 6, in_memory=False)
    assert data.class_names == ["0", "1", "2", "3", "4"]
    everything = data.everything()
    assert everything.labels.tolist() == [i % 5 for i in range(30)]
    for i, file in enumerate(sorted(files, key=lambda file: file.stem)):
        assert torch.equal(everything.read([i])[0], read_image(file, 6, 3))


def add(archive, name, content=b"", **changes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in changes.items():
        setattr(member, attribute, value)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("link.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link"),
        ("hard.png", {"type": tarfile.LNKTYPE, "linkname": "a/000.jpg"}, "link"),
        ("pipe.png", {"type": tarfile.FIFOTYPE}, "link"),
        ("plain.png", {}, "directories"),
        ("a/000.cls", {}, "cls"),
        ("a/000.jpg", {}, "jpg"),
        ("hole.png", {"type": tarfile.GNUTYPE_SPARSE}, "link"),
        ("hole.png", {"pax_headers": {"GNU.sparse.map": "0,0", "GNU.sparse.size": "9"}}, "link"),
    ],
)
def test_tars_that_are_not_trusted_are_refused_in_one_line(name, changes, words, tars, tmp_path):
    for file in tars.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with tarfile.open(tmp_path / "extra.tar", "w") as archive:
        add(archive, name, **changes)
    with pytest.raises(ValueError, match=words) as error:
        _ = ImageFolder(tmp_path, 6).num_classes
    assert "\n" not in str(error.value)


def test_a_tar_that_is_cut_off_or_compressed_is_refused(tars, tmp_path):
    whole = (tars / "000.tar").read_bytes()
    last = whole.rindex(b"ustar") + 255  # the first byte after the last header
    for content in (whole[: last + 40], whole[: last - 40], whole[:700], b"\x1f\x8b" + whole, b""):
        (tmp_path / "000.tar").write_bytes(content)
        with pytest.raises(ValueError, match="images") as error:
            _ = ImageFolder(tmp_path, 6).num_classes
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_that_leads_back_to_its_beginning_is_refused(form, tmp_path):
    member = tarfile.TarInfo("notes.txt")
    member.size = -1024
    (tmp_path / "000.tar").write_bytes(member.tobuf(form) + bytes(4096))
    with pytest.raises(ValueError, match="images"):
        _ = ImageFolder(tmp_path, 6).num_classes


def test_a_tar_with_a_broken_header_or_no_end_is_refused_and_not_read_to_there(folder, tmp_path):
    with tarfile.open(tmp_path / "000.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for file in folder.rglob("*.jpg"):
            add(archive, f"{file.relative_to(folder)}", file.read_bytes())
    whole = (tmp_path / "000.tar").read_bytes()
    middle = whole.index(b"ustar", len(whole) // 2) - 257
    end = whole.rindex(b"ustar") - 257
    for content in (whole[:middle] + b"X" + whole[middle + 1 :], whole[:end], whole[: end + 100]):
        (tmp_path / "000.tar").write_bytes(content)
        with pytest.raises(ValueError, match="images"):
            _ = ImageFolder(tmp_path, 6).num_classes


def test_a_header_that_asks_for_all_memory_is_refused(tars, tmp_path):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**60
    (tmp_path / "000.tar").write_bytes((tars / "000.tar").read_bytes()[:-10240] + name.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(ValueError, match="images"):
        _ = ImageFolder(tmp_path, 6).num_classes


def test_an_image_has_one_class_number_and_one_place_in_its_archive(folder, tmp_path):
    image = sorted(folder.rglob("*.jpg"))[0]

    def written(*contents):
        for shard in range(2):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
                for name, content in contents:
                    add(archive, name, content)
        return ImageFolder(tmp_path, 6, in_memory=False)

    picture, number = ("0.jpg", image.read_bytes()), ("0.cls", b"1")
    assert len(written(picture, number, (".hidden/1.jpg", b"")).everything()) == 2  # one in each archive
    with pytest.raises(ValueError, match="cls"):
        _ = written(picture, number, ("0.cls", b"2")).num_classes
    with pytest.raises(ValueError, match="jpg"):
        _ = written(picture, number, picture).num_classes


@pytest.mark.parametrize("suffix", ["EPS", "TIFF"])
def test_files_of_other_formats_are_refused_whatever_their_names(suffix, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "program.jpg", suffix)
    with pytest.raises(UnreadableImage, match="program"):
        read_image(tmp_path / "program.jpg", 8, 3)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.raises(UnreadableImage, match="limit") as error:
        read_image(tmp_path / "bomb.png", 8, 3)
    assert "\n" not in str(error.value)


def test_tars_beside_images_are_refused(folder, tars, tmp_path):
    mixed = pictures(tmp_path, 2)
    (mixed / "000.tar").write_bytes((tars / "000.tar").read_bytes())
    with pytest.raises(ValueError, match="files"):
        _ = ImageFolder(mixed, 6).num_classes


def test_packed_names_are_the_names():
    names = ["a/ä.png", "", "b", "c\udcff.jpg"]
    assert list(map(os.fsdecode, pickle.loads(pickle.dumps(packed(names))))) == names

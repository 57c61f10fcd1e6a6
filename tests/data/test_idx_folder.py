"""IDX files are read as their format says, from every layout they come in, and refused where they are damaged."""

import gzip

import pytest
import torch
from idx_files import IMAGES, LABELS, idx, write_idx

from fdistill.data import GenerativeDataModule, IdxFolder


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz")])
def test_every_layout_gives_the_pixels_and_labels_of_the_files(tmp_path, below, pack, suffix):
    write_idx(tmp_path / below, pack, suffix)
    data = IdxFolder(str(tmp_path))
    train, held_out = data.load_splits()
    batch = train.__getitems__(range(6))
    assert (data.sample_shape, data.num_classes, len(train), len(held_out)) == ((1, 2, 4), 3, 6, 3)
    assert batch.classes.tolist() == [0, 1, 2, 0, 1, 2]
    expected = (10 * torch.arange(6.0) / 127.5 - 1).view(6, 1, 1, 1).expand(6, 1, 2, 4)
    torch.testing.assert_close(batch.x, expected, rtol=0, atol=1e-6)


def test_dotted_names_are_read_too(tmp_path):
    for file in write_idx(tmp_path).iterdir():
        file.rename(tmp_path / file.name.replace("-idx", ".idx"))
    assert len(IdxFolder(str(tmp_path)).load_splits()[0]) == 6


def test_it_is_rebuilt_from_its_description(tmp_path):
    data = GenerativeDataModule.from_spec(IdxFolder(str(write_idx(tmp_path)), batch_size=2).spec())
    assert (data.folder, data.batch_size) == (str(tmp_path), 2)


def damaged(name, change):
    def damage(folder):
        file = folder / name
        file.write_bytes(change(file.read_bytes()))

    return damage


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda folder: (folder / f"train-{LABELS}").unlink(), "none"),
        (lambda folder: write_idx(folder / "KMNIST/raw"), "KMNIST"),
        (damaged(f"train-{IMAGES}", lambda data: data[:-1]), "47"),
        (damaged(f"t10k-{IMAGES}", lambda data: data + b"0"), "bytes"),
        (damaged(f"t10k-{IMAGES}", lambda data: b""), "empty"),
        (damaged(f"train-{IMAGES}", lambda data: b"\0\0\x0d" + data[3:]), "00000d03"),
        (damaged(f"train-{LABELS}", lambda data: idx(torch.zeros(5))), "labels"),
        (damaged(f"t10k-{LABELS}", lambda data: idx(torch.tensor([0, 1, 7]))), "num_classes"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path, damage, word):
    damage(write_idx(tmp_path))
    with pytest.raises(ValueError, match=word):
        IdxFolder(str(tmp_path)).setup()


def test_a_cut_gzip_file_is_refused(tmp_path):
    write_idx(tmp_path, lambda data: gzip.compress(data)[:-4], ".gz")
    with pytest.raises(ValueError, match="fetch"):
        IdxFolder(str(tmp_path)).setup()

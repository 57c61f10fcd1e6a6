"""Files and folders appear whole or not at all."""

import os

import pytest

from fdistill.core.atomic_files import atomic_write, replace_folder


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "note.txt"
    assert atomic_write(path, "Fréchet\n") == path
    assert path.read_bytes() == "Fréchet\n".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["note.txt"]


def test_a_file_has_the_permissions_that_the_user_asked_for(tmp_path):
    usual = tmp_path / "usual"
    usual.write_text("")
    assert atomic_write(tmp_path / "atomic", "").stat().st_mode == usual.stat().st_mode


def test_a_full_disk_is_told_in_one_line_also_where_safetensors_meets_it(tmp_path):
    class SafetensorError(Exception):
        pass

    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(OSError, match=r"cannot write .*model: No space left on device; name a place"),
        replace_folder(tmp_path / "model"),
    ):
        raise SafetensorError(said)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_an_impossible_place_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write") as caught:
        atomic_write(tmp_path / "file" / "inside.txt", "x")
    assert "\n" not in str(caught.value)


def test_a_folder_is_swapped_in_when_the_block_ends(tmp_path):
    target = tmp_path / "runs" / "export"
    for content in ("first", "second"):
        with replace_folder(target) as folder:
            assert folder.parent == target.parent
            (folder / content).write_text(content)
            assert not (target / content).exists()
        assert os.listdir(target) == [content]
        assert os.listdir(target.parent) == ["export"]


def test_a_raising_block_keeps_the_old_folder_and_leaves_nothing(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "old").write_text("old")

    def half_written():
        with replace_folder(target) as folder:
            (folder / "new").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_written()
    assert os.listdir(tmp_path) == ["export"]
    assert os.listdir(target) == ["old"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "old").write_text("old")

    def vanishing():
        with replace_folder(target) as folder:
            folder.rmdir()

    with pytest.raises(OSError, match="cannot write"):
        vanishing()
    assert os.listdir(tmp_path) == ["export"]
    assert os.listdir(target) == ["old"]


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(NotADirectoryError, match="folder"), replace_folder(tmp_path / "file"):
        pass
    with pytest.raises(OSError, match="cannot write"), replace_folder(tmp_path / "file" / "inside"):
        pass
    assert (tmp_path / "file").read_text() == "keep"


def test_a_link_is_followed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk)
    with replace_folder(tmp_path / "link") as folder:
        (folder / "x").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(disk) == ["x"]

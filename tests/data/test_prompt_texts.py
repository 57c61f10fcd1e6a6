"""Prompts are read in order from every kind of file, and bad ones are told by their line."""

import json

import pytest
from PIL import Image

from fdistill.data.prompt_texts import read_prompts

THREE = ["a red seven", "zwei blaue Züge", "three"]


def test_lines_and_json_lines_and_captions_hold_the_same_prompts(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(THREE) + "\n", encoding="utf-8")
    assert read_prompts(lines) == THREE

    objects = tmp_path / "prompts.jsonl"
    objects.write_text("\n".join(json.dumps({"id": i, "caption": text}) for i, text in enumerate(THREE)))
    assert read_prompts(objects) == THREE
    objects.write_text("\n".join(map(json.dumps, THREE)))
    assert read_prompts(objects) == THREE

    folder = tmp_path / "images"
    folder.mkdir()
    for number, text in enumerate(THREE):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    assert read_prompts(folder) == THREE
    (folder / "1.txt").unlink()
    with pytest.raises(ValueError, match=r"1\.txt"):
        read_prompts(folder)


def test_parquet_and_saved_data_sets_are_read_by_column(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": THREE, "number": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "prompts.parquet")
    assert read_prompts(tmp_path / "prompts.parquet") == THREE
    (tmp_path / "set").mkdir()
    place = str(tmp_path / "set" / "data-00000-of-00001.arrow")
    with arrow.OSFile(place, "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    assert read_prompts(tmp_path / "set", "text") == THREE
    with pytest.raises(ValueError, match="column"):
        read_prompts(tmp_path / "set", "prompts")
    with pytest.raises(ValueError, match="a text"):
        read_prompts(tmp_path / "set", "number")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(tmp_path / "broken.parquet")


def test_empty_prompts_are_told_by_their_lines_or_left_out_on_request(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  \ntwo\n")
    with pytest.raises(ValueError, match="2 empty prompts, in line 2, 3"):
        read_prompts(path)
    assert read_prompts(path, skip_empty=True) == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="no prompt"):
        read_prompts(path, skip_empty=True)


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="prompts"):
        read_prompts(tmp_path / "nothing.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"other": "y"}')
    with pytest.raises(ValueError, match="line 2"):
        read_prompts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"other": "y"}')
    with pytest.raises(ValueError, match="--column"):
        read_prompts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("no json")
    with pytest.raises(ValueError, match="JSON"):
        read_prompts(tmp_path / "a.jsonl")

"""Prompts from the files that people keep them in: lines, .jsonl, .parquet, data sets, captions beside images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fdistill.core.weight_files import brief, reason
from fdistill.data.image_folder import list_folder

COLUMNS = ("prompt", "caption", "text")
"""Names of the column of prompts, in the order in which they are looked for where none is given."""
_OTHER_TABLES = (".csv", ".tsv", ".json")  # whose first line is no prompt
_SHOWN = 10  # line numbers in a message


def read_prompts(source: Path, column: str | None = None, skip_empty: bool = False) -> list[str]:
    """All prompts of a source, in its order.

    Args:
        source: a text file of one prompt a line; .jsonl of objects or texts; .parquet; a folder that `save_to_disk` of
            datasets wrote; or a folder of images with a text file of the same name beside each.
        column: which one holds the prompts; the first of prompt, caption and text that is there, where not given.
        skip_empty: leave out prompts of nothing but blanks.

    Raises:
        FileNotFoundError: without the source.
        ValueError: for prompts that are empty or no text, none at all, or a file that cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: name a file of prompts, one a line")
    prompts = list(_rows(source, column))
    wrong = [number for number, prompt in enumerate(prompts, 1) if not isinstance(prompt, str)]
    if wrong:
        raise ValueError(f"{source}: a prompt is a text: got {brief(prompts[wrong[0] - 1])} in line {wrong[0]}")
    empty = [number for number, prompt in enumerate(prompts, 1) if not prompt.strip()]
    if empty and not skip_empty:
        shown = ", ".join(map(str, empty[:_SHOWN])) + (" ..." if len(empty) > _SHOWN else "")
        raise ValueError(
            f"{source} has {len(empty)} empty prompts, in line {shown}: fill them, or leave them out by --skip_empty"
        )
    kept = [prompt for prompt in prompts if prompt.strip()]
    if not kept:
        raise ValueError(f"{source} holds no prompt: expected at least one")
    return kept


def _rows(source: Path, column: str | None) -> Iterator[Any]:
    if source.suffix.lower() in _OTHER_TABLES:
        raise ValueError(f"prompts come as lines of text, .jsonl or .parquet: got {source}; convert it to one of them")
    arrow = sorted(source.glob("*.arrow"))
    if column is not None and not arrow and source.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{source} has no columns: got column {column!r}; leave --column out")
    if source.is_dir():
        return _columns(_arrow_tables(arrow), source, column) if arrow else _beside_images(source)
    if source.suffix == ".parquet":
        return _columns(_parquet_tables(source), source, column)
    lines = _text(source).splitlines()
    return _objects(lines, source, column) if source.suffix == ".jsonl" else iter(lines)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {reason(error)}; convert it") from error
    except FileNotFoundError as error:
        raise ValueError(f"a caption lies beside each image, in a text file of its name: there is no {path}") from error


def _objects(lines: list[str], source: Path, column: str | None) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: line {number} is no JSON: {reason(error)}") from error
        if isinstance(row, dict):
            column = column or _named(row, source)
            if column not in row:
                raise ValueError(f"{source}: line {number} has no column {column!r}: got {brief(list(row))}")
            row = row[column]
        yield row


def _columns(tables: Iterator[Any], source: Path, column: str | None) -> Iterator[Any]:
    for table in tables:
        column = column or _named(table.column_names, source)
        if column not in table.column_names:
            raise ValueError(f"{source} has no column {column!r}: got {brief(table.column_names)}; give --column")
        yield from table.column(column).to_pylist()


def _named(columns: Any, source: Path) -> str:
    found = [name for name in COLUMNS if name in columns]
    if not found:
        raise ValueError(f"{source} has no column {', '.join(COLUMNS)}: got {brief(list(columns))}; give --column")
    return found[0]


def _parquet_tables(path: Path) -> Iterator[Any]:
    yield from _tables(lambda arrow: arrow.parquet.ParquetFile(path).iter_batches(), path)


def _arrow_tables(paths: list[Path]) -> Iterator[Any]:
    for path in paths:
        yield from _tables(lambda arrow, path=path: arrow.ipc.open_stream(arrow.memory_map(str(path))), path)


def _tables(open_file: Any, path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"reading {path} needs pyarrow: pip install pyarrow, or give a file of lines") from error
    try:
        for batch in open_file(pyarrow):
            yield pyarrow.Table.from_batches([batch])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}; write it again") from error


def _beside_images(folder: Path) -> Iterator[Any]:
    """The captions of images, in the order in which `fdistill encode` encodes the images."""
    images = list_folder(folder).images
    for index in range(len(images)):
        path = Path(images.name(index)).with_suffix(".txt")
        yield " ".join(_text(path).split())

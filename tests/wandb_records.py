"""Reads the .wandb files of offline runs: LevelDB's record framing around the protobuf messages of wandb itself."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 1 << 15
HEADER = b":W&B"
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one file says of its run.

    Attributes:
        folder: where its files are.
        id, project: of the run.
        config: nested settings.
        history: the rows in the order they were logged, name to value.
        axes: pattern or name to the name of its axis and the kinds of its summary.
        summary: name to value.
        exit_code: None while the run goes on.
    """

    folder: Path
    id: str = ""
    project: str = ""
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    axes: dict[str, tuple[str, set[str]]] = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    exit_code: int | None = None

    def of(self, name):
        """Turn to value of everything logged under a name."""
        return {row["trainer/global_step"]: row[name] for row in self.history if name in row}


def read_folder(folder):
    """All offline runs in folder/wandb, oldest first."""
    wandb.teardown()  # a run that is finished may still be on its way to the disk
    return [read_run(path) for path in sorted(Path(folder).glob("wandb/offline-run-*/run-*.wandb"))]


def read_run(path):
    """The run that a file holds."""
    run = OfflineRun(Path(path).parent)
    for data in records(Path(path).read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.project = record.run.run_id, record.run.project
            update(run.config, record.run.config.update)
        elif kind == "config":
            update(run.config, record.config.update)
        elif kind == "history":
            run.history.append(update({}, record.history.item))
        elif kind == "summary":
            update(run.summary, record.summary.update)
        elif kind == "metric":
            metric = record.metric
            kinds = {name.name for name, value in metric.summary.ListFields() if value is True}
            run.axes[metric.glob_name or metric.name] = (metric.step_metric, kinds)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def update(values, items):
    """Set what the items say; they name a place by a key, or by a path of nested keys."""
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = values
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return values


def records(content):
    """The payloads of a file; a record at the end that a kill has torn is left out."""
    assert content.startswith(HEADER), content[:7]
    at, parts = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # too little room for a header: the block is filled up with zeros
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        payload = content[at + 7 : at + 7 + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(payload) < length:
            return
        parts = payload if kind in (FULL, FIRST) else parts + payload
        if kind in (FULL, LAST):
            yield parts
        at += 7 + length

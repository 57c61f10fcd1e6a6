"""Distil and evaluate the text quick start's teacher for several seeds; a table of means and ranges.

    make text-quickstart && python tools/text_seeds.py --out runs/text-seeds

One teacher, that of `make text-quickstart`, whose pictures are drawn once; the students differ in the noise and the
batches that they learned from. Finished runs found in --out are not repeated. Writes results.json and prints a table.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fdistill.cli.commands.evaluate_captions import COLUMNS as SHOWN
from fdistill.core.atomic_files import write_json

COLUMNS = SHOWN | {"vendi_by_caption": "Vendi by caption", "vendi_by_caption_patches": "of patches"}


def run_once(seed: int, out: Path, options: Sequence[str]) -> dict[str, Any]:
    folder = out / f"seed{seed}"
    report = folder / "report.json"
    if not report.is_file():
        run = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder / "train-student")]
        configs = ["--config", "configs/trainer.yaml", "--config", "configs/text_quickstart/student.yaml"]
        _fdistill("fit", *configs, *run, "--ckpt_path", "last", *options)
        student = folder / "train-student" / "checkpoints" / "last.ckpt"
        _fdistill("evaluate", "--checkpoint", str(student), "--out", str(folder))
    return json.loads(report.read_text(encoding="utf-8"))


def _fdistill(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "fdistill", *arguments], check=True)


def line(title: str, rows: Sequence[dict[str, float]]) -> str:
    """Mean, and lowest to highest, of each column."""
    cells = []
    for column in COLUMNS:
        values = [row[column] for row in rows]
        digits = 2 if "vendi" in column else 3
        mean = sum(values) / len(values)
        cells.append(f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})")
    return f"| {title} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("options", nargs="*", help="of fdistill fit, after --")
    given = parser.parse_args()
    reports = [run_once(seed, given.out, given.options) for seed in given.seeds]
    write_json(given.out / "results.json", {"seeds": given.seeds, "reports": reports})
    for key in reports[0]["captions"]:
        print(f"\n| {key} captions | " + " | ".join(COLUMNS.values()) + " |\n|---" + "|--:" * len(COLUMNS) + "|")
        for name in reports[0]["captions"][key]:
            print(line(name, [report["captions"][key][name] for report in reports]))
        beside = [report["student_beside_teacher"][key] for report in reports]
        for name in beside[0]:
            print(f"{key}: {name} {', '.join('-' if row[name] is None else f'{row[name]:.3f}' for row in beside)}")


if __name__ == "__main__":
    main()

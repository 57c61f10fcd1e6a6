"""Type errors of the package, by mypy: in no room more than pyproject.toml allows it, and none where it says nothing.

    python tools/count_type_errors.py

The numbers of tool.count_type_errors are lowered as errors are mended, and never raised.
"""

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUMMARY = re.compile(r"^(Success|Found \d+ error)", re.MULTILINE)
ERROR = re.compile(r"fdistill/(\w+)\S*: error: ")


def compare(report: str, allowed: dict[str, int]) -> tuple[bool, list[str]]:
    """Whether what mypy printed may be, and what to say of it: the errors of each room that has too many."""
    rooms = [(match[1], line) for line in report.splitlines() if (match := ERROR.match(line))]
    counts = Counter(room for room, _ in rooms)
    over = sorted(room for room in counts if counts[room] > allowed.get(room, 0))
    words = [line for room, line in rooms if room in over]
    words += [f"type errors in {room}: expected at most {allowed.get(room, 0)}, got {counts[room]}" for room in over]
    words += [
        f"lower {room} from {number} to {counts[room]} in pyproject.toml, tool.count_type_errors"
        for room, number in allowed.items()
        if counts[room] < number
    ]
    return not over, [*words, f"type errors: {len(rooms)}"]


def main() -> int:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not SUMMARY.search(done.stdout):  # it is not there, or could not read a file
        print(done.stdout + done.stderr, file=sys.stderr)
        return 2
    passed, words = compare(done.stdout, settings["count_type_errors"])
    print("\n".join(words))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

"""An interpreter that has imported torch and stock diffusers, not fdistill; each script runs in a copy of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cli_runs import Outcome

SERVER = """
import json, os, sys
from pathlib import Path
import numpy, torch
from diffusers import AutoencoderKL, ConsistencyModelPipeline, DiffusionPipeline, UNet2DModel
from forked import run_forked

out, err = map(Path, sys.argv[1:])

def work(code, arguments):
    sys.argv = ["", *arguments]
    sys.stderr = err.open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    exec(code, {})

for line in sys.stdin:
    code, *arguments = json.loads(line)
    print(run_forked(lambda: work(code, arguments), out), flush=True)
"""


class StockProcess:
    """Texts have other hashes there than here, and folders of Hugging Face's libraries are its own.

    Args:
        folder: where it keeps files; it exists.
    """

    def __init__(self, folder):
        self.printed = folder / "out", folder / "err"
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        changes = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "HF_HOME": str(folder / "cache"), "PYTHONPATH": paths}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *map(str, self.printed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | changes,
        )

    def __call__(self, code, *arguments):
        """What a script prints that has to work."""
        for path in self.printed:
            path.write_text("")
        self.process.stdin.write(json.dumps([code, *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline().strip()
        out, err = (path.read_text() for path in self.printed)
        assert status == "0", f"{status}\n{out}\n{err}"
        return Outcome(0, out, err)

    def end(self):
        self.process.stdin.close()
        self.process.wait()

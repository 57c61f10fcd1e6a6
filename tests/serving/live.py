"""A service in a process of its own."""

import contextlib
import os
import re
import subprocess
import sys


@contextlib.contextmanager
def live(*arguments, before=""):
    """`fdistill serve` on a free port, once it listens: its process and its address; killed at the end if it runs.

    Args:
        arguments: of the command.
        before: code that the process runs before.
    """
    code = f"import sys\nfrom fdistill.cli.main import main\n{before}\nsys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            place = re.search(r"serving .* on (http://\S+)", line)
            if place:
                break
        else:
            raise AssertionError("".join(said))
        yield process, place[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()

"""A source that is refused: one printable line that names a file of it, after little memory."""

import math
import resource
import sys

import pytest

from fdistill.io.importing import Options, import_model

MOST_MEMORY = 200 * 2**20 if sys.platform == "linux" else math.inf  # bytes; other systems count in other units


def refused_lean(source, folder=None, **options):
    """The line, which begins with a path in `folder` (the source, where not given)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"\w") as error:
        import_model(source, Options(**options))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY
    message = str(error.value)
    assert message.startswith(str(folder or source))
    assert message.isprintable()
    assert len(message) < 1200
    return message

"""What a service's processes tell on stderr."""

import logging
import sys


def log_to_stderr() -> None:
    """Begin to tell what the service loads, replaces and refuses to."""
    log = logging.getLogger("fdistill.serving")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)

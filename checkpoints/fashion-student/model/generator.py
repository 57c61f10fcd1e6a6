"""Where diffusers finds its model; fdistill must be installed."""

from fdistill.io.export.pipeline import StudentLoader

__all__ = ["StudentLoader"]

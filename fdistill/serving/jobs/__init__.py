"""Training runs as jobs: a queue on this machine, or other people's schedulers."""

from fdistill.serving.jobs.home import Home, Job
from fdistill.serving.jobs.jobs import ENGINES, Jobs, RunStatus

__all__ = ["ENGINES", "Home", "Job", "Jobs", "RunStatus"]

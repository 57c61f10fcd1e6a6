"""A run and its folder: one writer at a time, no run over another, and settings that may change when it continues."""

from fdistill.cli.runs.folder import RunFolder
from fdistill.cli.runs.settings import Change, changes, check_kept, flat_settings

__all__ = ["Change", "RunFolder", "changes", "check_kept", "flat_settings"]

"""From a run checkpoint to a folder that other people's software loads, and back."""

from fdistill.export.folder import export_folder, read_folder
from fdistill.export.model_card import model_card

__all__ = ["export_folder", "model_card", "read_folder"]

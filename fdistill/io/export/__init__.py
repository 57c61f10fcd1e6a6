"""From a run checkpoint to a folder that other people's software loads, and back."""

from fdistill.io.export.folder import export_folder
from fdistill.io.export.model_card import model_card

__all__ = ["export_folder", "model_card"]

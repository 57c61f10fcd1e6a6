"""Diffusion models that others trained become teachers: folders of diffusers, plain safetensors, EDM's pickles."""

from fdistill.io.importing.options import Options
from fdistill.io.importing.source import import_model

__all__ = ["Options", "import_model"]

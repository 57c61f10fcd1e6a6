"""Where diffusers finds the pipeline; fdistill must be installed."""

from fdistill.io.export.pipeline import OneStepPipeline

__all__ = ["OneStepPipeline"]

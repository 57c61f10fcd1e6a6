"""Where diffusers finds the pipeline; fdistill must be installed."""

from fdistill.export.pipeline import OneStepPipeline

__all__ = ["OneStepPipeline"]

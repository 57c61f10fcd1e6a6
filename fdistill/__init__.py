"""fdistill: distil a diffusion model into a generator that needs one network evaluation."""

from fdistill.core.moved_names import understand_moved_names

understand_moved_names()

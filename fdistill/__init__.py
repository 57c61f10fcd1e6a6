"""fdistill: distil a diffusion model into a generator that needs one network evaluation."""

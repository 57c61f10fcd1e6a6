"""Denoisers and their networks, guidance, and what makes images of latents. It imports theory and below."""

"""Models in files: checkpoints, exported folders, other people's weights. It imports sampling and below."""

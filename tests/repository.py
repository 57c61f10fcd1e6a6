"""Where the repository is, from whatever room a test lies in."""

from pathlib import Path

ROOT = Path(__file__).parents[1]

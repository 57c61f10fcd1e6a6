"""`python -m fdistill` is the command line."""

import sys

from fdistill.cli import main

sys.exit(main())

"""`python -m fdistill` is the command line."""

import sys

from fdistill.cli.main import main

sys.exit(main())

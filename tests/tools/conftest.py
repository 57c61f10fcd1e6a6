"""Scripts are imported by their names, as they import each other."""

import sys

from repository import ROOT

sys.path.append(str(ROOT / "tools"))

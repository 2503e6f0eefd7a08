"""`python -m metering`, the same as the console script."""

import sys
from pathlib import Path

if not sys.flags.safe_path:
    # Without -P the first place to look is the process's directory, and a folder `db` in it would be taken for ours.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from metering.cli.main import main

main()

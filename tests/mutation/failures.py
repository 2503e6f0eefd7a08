"""Tests that fail without any mutant: nothing can be told then."""

from pathlib import Path
from typing import Final

CLEAN_FAILURES: Final = Path("clean-failures.txt")
"""Where the tests note them, in the folder in which mutmut runs them."""

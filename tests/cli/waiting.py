"""Waiting for something to become true, with a limit."""

import time
from collections.abc import Callable

LIMIT_S = 30.0


def wait_until(true: Callable[[], object], what: str) -> None:
    """Return once `true()` is; fail, naming `what`, when that takes too long."""
    deadline_s = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {LIMIT_S:.0f} s"
        time.sleep(0.05)

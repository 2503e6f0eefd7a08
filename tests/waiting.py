"""Waiting for a condition, with a limit: tests never sleep for luck."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, limit_s: float, every_s: float = 0.02) -> None:
    """Return as soon as `condition` holds; fail if it doesn't within `limit_s` seconds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s"
        time.sleep(every_s)

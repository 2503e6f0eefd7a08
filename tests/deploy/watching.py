"""Watching several conditions come true."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor


def seconds_until_right(limit_s: float, conditions: Mapping[str, Callable[[], bool]]) -> dict[str, float]:
    """When each came true, asked side by side: one that hangs holds up none of the others. Infinity: not within the limit."""
    began_s = time.monotonic()

    def when(true: Callable[[], bool]) -> float:
        while time.monotonic() < began_s + limit_s:
            if true():
                return round(time.monotonic() - began_s, 2)
            time.sleep(0.05)
        return float("inf")

    with ThreadPoolExecutor(len(conditions)) as threads:
        return dict(zip(conditions, threads.map(when, conditions.values()), strict=True))

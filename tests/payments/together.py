"""Doing things at the same moment, by real threads."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def together(*calls: Callable[[], Result]) -> Sequence[Result | Exception]:
    """Make all calls at once, each by a thread of its own; give what each returned or raised, in their order."""
    start = threading.Barrier(len(calls))

    def make(call: Callable[[], Result]) -> Result | Exception:
        start.wait()
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(make, calls))

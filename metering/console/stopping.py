"""Ending in an orderly way when told to."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM and SIGHUP; that one unless `nohup` has it ignored."""
    return [
        number
        for number in STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


def _note(_number: int, _frame: FrameType | None) -> None:
    """A handler that leaves everything to the byte which Python writes to the wake-up descriptor."""


@contextmanager
def stop_on_signals(*, or_end_of_stdin: bool = False) -> Iterator[threading.Event]:
    """An event that the signals of `stop_signals` set.

    With `or_end_of_stdin` the end of standard input sets it too.

    A thread sets it: a handler that did could come while this very thread holds the event's lock. Only for the main thread.
    """
    stop = threading.Event()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    watched = [wake, sys.stdin.fileno()] if or_end_of_stdin else [wake]
    watcher = threading.Thread(target=_watch, args=(watched, stop), name="stop", daemon=True)
    before = {number: signal.signal(number, _note) for number in stop_signals()}
    wakeup_before = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(woken)  # the watcher reads the end of it
        watcher.join()
        os.close(wake)


def _watch(watched: list[int], stop: threading.Event) -> None:
    """Set `stop` at the first byte or the end of the pipe, the first of `watched`, and at the end of the others."""
    while not stop.is_set():
        readable, _, _ = select.select(watched, [], [])
        if watched[0] in readable or any(not os.read(descriptor, 65_536) for descriptor in readable):
            stop.set()

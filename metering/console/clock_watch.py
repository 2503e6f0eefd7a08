"""How far this process's clock is from Postgres's: measured now and then, told to Prometheus, and complained of."""

import threading
from datetime import timedelta
from typing import Final, Self

import structlog
from prometheus_client import Gauge
from sqlalchemy import Engine

from db.postgres.clock import CLOCKS_DIFFER_AFTER, measure_difference
from db.postgres.failures import Failure, diagnose
from metering.runtime.clock import Clock
from metering.runtime.role_metrics import UNKNOWN

EVERY_S: Final = 10.0

CLOCK_DIFFERENCE_SECONDS: Final = Gauge(
    "metering_clock_difference_seconds",
    "By how much this process's clock is ahead of Postgres's, negative where it is behind.",
)
CLOCK_DIFFERENCE_SECONDS.set(UNKNOWN)

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ClockWatch:
    """Compares the clocks in a thread of its own, while it is entered. Nothing is decided by what it finds."""

    def __init__(self, engine: Engine, clock: Clock, *, every_s: float = EVERY_S) -> None:
        self._engine = engine
        self._clock = clock
        self._every_s = every_s
        self._closed = threading.Event()
        self._differ = False
        self._thread = threading.Thread(target=self._run, name="clock watch", daemon=True)

    def __enter__(self) -> Self:
        """Measure, and go on measuring."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; what hangs at Postgres is left behind."""
        self._closed.set()
        self._thread.join(timeout=1)

    def complaint(self) -> str | None:
        """What is wrong with the clocks, as last measured; None where nothing is."""
        return f"clock: {_COMPLAINT}" if self._differ else None

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._measure()
            except Exception as error:
                # Postgres's absence is told by everybody else.
                if diagnose(error) is Failure.POISON:
                    log.exception("the clocks can't be compared")
            self._closed.wait(self._every_s)

    def _measure(self) -> None:
        difference = measure_difference(self._engine, self._clock)
        CLOCK_DIFFERENCE_SECONDS.set(difference / timedelta(seconds=1))
        differ = abs(difference) > CLOCKS_DIFFER_AFTER
        if differ:
            log.error(_COMPLAINT, ahead_s=round(difference / timedelta(seconds=1), 3))
        elif self._differ:
            log.info("this process's clock and Postgres's agree again")
        self._differ = differ


_COMPLAINT: Final = (
    "this process's clock and Postgres's differ by more than 30 s:"
    " set the one that is wrong, and let NTP keep it right"
)

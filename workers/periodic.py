"""Periodic tasks: work that is done again and again, whatever fails."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import redis
import structlog

from db.postgres.failures import Failure, diagnose
from metering.payments.stripe_failures import StripeFailure
from workers.failures import sentence

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """Work that is done again `period_s` after it has ended. `work` is given the event that tells it to stop."""

    name: str
    work: Callable[[threading.Event], object]
    period_s: float

    def run(self, stop: threading.Event) -> None:
        """Do it until told to stop. An error ends one run, never the task; one that nobody foresaw is logged in full."""
        while not stop.is_set():
            try:
                self.work(stop)
            except Exception as error:
                log.warning(
                    "a periodic task was interrupted",
                    task=self.name,
                    error=sentence(error),
                    exc_info=not _passes_by_itself(error),
                )
            stop.wait(self.period_s)


def _passes_by_itself(error: Exception) -> bool:
    return isinstance(error, redis.RedisError | StripeFailure) or diagnose(error) is not Failure.POISON

"""What stands behind enqueued messages, webhooks and signals: no message is the only reason for a charge to be made, settled or
told of.

Each part goes round in a thread of its own, so that Stripe, when it is slow, holds up none of the others. Any number of processes
may do all of it at the same time.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from db.attempts.attempts import due_attempts, longest_open
from db.attempts.reload_rule import ask_due, ask_page
from db.postgres.failures import Failure, diagnose
from metering.payments.charges import process_attempt
from metering.payments.context import Payments
from metering.payments.event_list import follow_event_list
from metering.payments.metrics import LONGEST_OPEN_ATTEMPT_SECONDS
from metering.payments.settling import follow
from metering.runtime.clock import age_s
from metering.signals.reload_signals import publish_overdue
from workers.failures import sentence
from workers.periodic import PeriodicTask

PERIOD_S: Final = 2.0
"""How long after the end of one run the next one begins."""
ATTEMPT_THREADS: Final = 8
"""How many attempts one process works on at once, besides those that were enqueued for it."""
PAGE: Final = 100
TELL_EVERY_S: Final = 15.0

AttemptKey = tuple[int, UUID]
"""An org and the id of one of its attempts."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def payment_tasks(payments: Payments) -> list[PeriodicTask]:
    """All that has to go round in every jobs process."""
    return [
        PeriodicTask("attempts", DueAttempts(payments).work, PERIOD_S),
        PeriodicTask("reload rule", ReloadRule(payments).run_once, PERIOD_S),
        PeriodicTask(
            "signals",
            lambda _: publish_overdue(payments.engine, payments.signals),
            PERIOD_S,
        ),
        PeriodicTask("longest open attempt", lambda _: tell_longest_open(payments), TELL_EVERY_S),
        PeriodicTask("Stripe's events", lambda _: follow_event_list(payments), PERIOD_S),
    ]


def tell_longest_open(payments: Payments) -> None:
    """Tell Prometheus how long the charge has been open that has been so longest."""
    age = longest_open(payments.engine)
    # Of one that is open it grows while nobody can ask again.
    told = partial(age_s, age, time.monotonic()) if age else age.total_seconds
    LONGEST_OPEN_ATTEMPT_SECONDS.set_function(told)


class ReloadRule:
    """Asks the reload rule where no transaction does, because nothing has changed but the time."""

    def __init__(self, payments: Payments) -> None:
        self._payments = payments
        self._walked_to = 0

    def run_once(self, stop: threading.Event) -> None:
        """Ask for every org whose time has come; then for a page of all that have reloads enabled.

        What it costs follows what is due: an org that is paused is looked at when its pause ends, and as the walk comes by.
        """
        for reloads in ask_due(self._payments.engine):
            follow(self._payments, reloads)
            if stop.is_set():
                return
        reloads, self._walked_to = ask_page(self._payments.engine, self._walked_to)
        follow(self._payments, reloads)


class DueAttempts:
    """Works on attempts that are due, some at a time, here and without Redis."""

    def __init__(self, payments: Payments) -> None:
        self._payments = payments
        self._in_hand: dict[Future[object], AttemptKey] = {}

    def work(self, stop: threading.Event) -> None:
        """Work on what is due, and look again and again, until told to stop; then finish what is in hand.

        One that hangs takes a thread, and holds up nothing else.
        """
        self._in_hand.clear()
        with ThreadPoolExecutor(ATTEMPT_THREADS, thread_name_prefix="attempt") as threads:
            while not stop.is_set():
                try:
                    self._begin_due(threads, stop)
                except Exception as error:
                    if diagnose(error) is Failure.POISON:
                        raise
                    # The task goes on: its end would wait for all that hang at Stripe, and nothing else be begun meanwhile.
                    log.warning("due attempts can't be read now", error=sentence(error))
                stop.wait(PERIOD_S)
                self._take_done(limit_s=0)

    def _begin_due(self, threads: ThreadPoolExecutor, stop: threading.Event) -> None:
        for key in self._due():
            while len(self._in_hand) >= ATTEMPT_THREADS and not stop.is_set():
                self._take_done(limit_s=PERIOD_S)
            if stop.is_set():
                return
            if key not in self._in_hand.values():
                self._in_hand[threads.submit(process_attempt, self._payments, *key)] = key

    def _due(self) -> Iterator[AttemptKey]:
        """Every attempt that is due, each once, and none that gets due meanwhile for ever."""
        seen: set[AttemptKey] = set()
        again = 0
        while True:
            limit = PAGE + again
            due = due_attempts(self._payments.engine, limit=limit)
            new = [key for key in due if key not in seen]
            again = len(due) - len(new)  # not begun yet, or failed: the next page lies behind them
            seen.update(new)
            yield from new
            if len(due) < limit:
                return

    def _take_done(self, *, limit_s: float) -> None:
        """Wait until some are done, and tell of those that failed: they stay due."""
        done, _ = wait(self._in_hand, timeout=limit_s, return_when=FIRST_COMPLETED)
        for future in done:
            org_id, attempt_id = self._in_hand.pop(future)
            error = future.exception()
            if isinstance(error, Exception):
                log.warning(
                    "an attempt could not be processed",
                    org_id=org_id,
                    attempt=str(attempt_id),
                    error=sentence(error),
                    exc_info=error if diagnose(error) is Failure.POISON else None,
                )

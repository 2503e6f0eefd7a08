"""Attempts that are due, while Postgres is away for a moment and Stripe says nothing."""

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from metering.runtime.clock import system_clock
from tests.waiting import wait_until
from workers import payment_reconciler
from workers.payment_reconciler import AttemptKey, DueAttempts


class Nobody:
    """Payments of which nothing is asked here but the time."""

    engine = None
    clock = staticmethod(system_clock)


def test_one_that_hangs_at_stripe_holds_up_none_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, next_due = (1, uuid4()), (2, uuid4())
    begun: list[AttemptKey] = []
    answered, stop = threading.Event(), threading.Event()

    def due() -> Iterator[list[AttemptKey]]:
        yield [hanging]
        raise psycopg.OperationalError("the connection to Postgres was lost")

    first = due()

    def due_attempts(*_: object, **__: object) -> list[AttemptKey]:
        return next(first, [hanging, next_due])

    def process_attempt(_: object, org_id: int, attempt_id: UUID) -> None:
        begun.append((org_id, attempt_id))
        if (org_id, attempt_id) == hanging:
            answered.wait()
        else:
            stop.set()

    monkeypatch.setattr(payment_reconciler, "PERIOD_S", 0.02)
    monkeypatch.setattr(payment_reconciler, "due_attempts", due_attempts)
    monkeypatch.setattr(payment_reconciler, "process_attempt", process_attempt)
    payments: Any = Nobody()
    working = threading.Thread(target=DueAttempts(payments).work, args=(stop,))
    working.start()
    try:
        wait_until(lambda: next_due in begun, limit_s=20)
    finally:
        stop.set()
        answered.set()
        working.join()
    assert begun.count(hanging) == 1

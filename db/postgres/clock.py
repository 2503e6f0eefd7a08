"""Postgres's clock: the one by which is decided whatever can't be taken back (docs/reference/money-rules.md#times-and-months).

`metering_now()` is `clock_timestamp()` in whole milliseconds: the time at which it is asked, not at which the transaction began.
"""

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, text

from db.postgres.engine import transaction
from metering.runtime.clock import Clock

CLOCKS_DIFFER_AFTER: Final = timedelta(seconds=30)
"""A process whose clock is farther from Postgres's is unhealthy: one of them is wrong."""

_NOW: Final = text("SELECT metering_now()")


def read_clock(connection: Connection) -> datetime:
    """What time it is for Postgres. Under a lock it is to be asked after the statement that waits for the lock."""
    now: datetime = connection.execute(_NOW).scalar_one()
    return now


def ask_clock(engine: Engine) -> datetime:
    """The same, in a transaction of its own."""
    with transaction(engine) as connection:
        return read_clock(connection)


def measure_difference(engine: Engine, clock: Clock) -> timedelta:
    """How far `clock` is ahead of Postgres's, at least; negative where it is behind.

    Postgres was asked at some time between two readings of `clock`: as far as these are apart nothing can be said.
    """
    with engine.connect() as connection:  # nothing to commit
        before = clock()
        now = read_clock(connection)
        after = clock()
    if before > now:
        return before - now
    # Postgres's time is cut to milliseconds, so it may look a little behind.
    return min(after - now, timedelta())

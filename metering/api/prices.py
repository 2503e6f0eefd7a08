"""The prices that the gate reckons with, read again every few seconds."""

import threading
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Engine

from db.engine import transaction
from db.failures import Failure, diagnose
from db.prices import load_price_book
from metering.rules.pricing import Price, PriceBook

MAX_AGE: Final = timedelta(seconds=5)
"""How old the prices may be. A new one starts at least 60 s after it was set (CONTRACT.md section 2, rule 4)."""
MIN_AGE: Final = timedelta(seconds=1)
"""How old they must be to be read again for the sake of a tier that isn't among them."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Prices:
    """The price book of one server, for any number of threads."""

    def __init__(self) -> None:
        self._book: PriceBook | None = None
        self._tried_at: datetime | None = None
        self._reading = threading.Lock()

    def in_force(self, engine: Engine, tier: str, now: datetime) -> Price | None:
        """The tier's price for a call that starts now; None for a tier that isn't there.

        While Postgres is away the prices that were last read are used. Raises what Postgres raises where none were read yet.
        """
        book = self._fresh(engine, now, MAX_AGE)
        if tier not in book:  # it may have been made since
            book = self._fresh(engine, now, MIN_AGE)
        return book.in_force(tier, now)

    def _fresh(self, engine: Engine, now: datetime, max_age: timedelta) -> PriceBook:
        if self._book is None:
            return self._read_first(engine, now)
        # Nobody waits for somebody else's reading who has prices already: Postgres may be slow.
        if self._is_old(now, max_age) and self._reading.acquire(blocking=False):
            try:
                return self._read(engine, now)
            except Exception as error:
                if diagnose(error) is Failure.POISON:
                    raise
                log.warning("the prices can't be read again; those read before are used", error=str(error))
            finally:
                self._reading.release()
        return self._book

    def _read_first(self, engine: Engine, now: datetime) -> PriceBook:
        with self._reading:
            return self._book or self._read(engine, now)

    def _is_old(self, now: datetime, max_age: timedelta) -> bool:
        return self._tried_at is None or abs(now - self._tried_at) >= max_age

    def _read(self, engine: Engine, now: datetime) -> PriceBook:
        self._tried_at = now  # also where it fails: not again with the next request
        with transaction(engine) as connection:
            self._book = load_price_book(connection)
        return self._book

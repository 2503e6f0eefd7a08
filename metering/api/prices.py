"""The prices that the gate reckons with, read again every few seconds."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import Engine

from db.ledger.price_book import refresh_price_book
from db.ledger.prices import LEAD_TIME
from db.postgres.engine import transaction
from db.postgres.failures import Failure, diagnose
from metering.rules.pricing import Price, PriceBook

READ_EVERY_S: Final = 5.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Prices:
    """The price book of one server, for any number of threads."""

    def __init__(self) -> None:
        self._book: PriceBook | None = None
        self._read_at: datetime | None = None
        self._reading = threading.Lock()

    def clear(self) -> None:
        """Forget what was read, as if the server had just started."""
        with self._reading:
            self._book = self._read_at = None

    def held(self, tier: str, org_id: int, now: datetime) -> Price | None:
        """The org's price for a call that starts now, if it is known for sure; asks nobody.

        A price starts at least LEAD_TIME after it was set (docs/reference/money-rules.md#which-price-counts): so one that isn't
        in younger prices is not in force yet.
        """
        book, read_at = self._book, self._read_at
        sure = book is not None and read_at is not None and abs(now - read_at) < LEAD_TIME
        return book.in_force(tier, org_id, now) if book is not None and sure else None

    def as_of(self, version: int) -> PriceBook | None:
        """The book, if it was read at this version; asks nobody. A later one is of before a restore."""
        book = self._book
        return book if book is not None and book.version == version else None

    def find(self, engine: Engine, tier: str, org_id: int, now: datetime) -> Price | None:
        """The org's price for a call that starts now, as Postgres says; None for a tier that isn't there.

        While Postgres is away a price that was read before is used. Raises what Postgres raises where there is none.
        """
        try:
            return self.read(engine, now).in_force(tier, org_id, now)
        except Exception as error:
            if diagnose(error) is Failure.POISON or self._book is None or tier not in self._book:
                raise
            log.warning("the gate reckons with old prices", read_at=str(self._read_at))
            return self._book.in_force(tier, org_id, now)

    def read(self, engine: Engine, now: datetime) -> PriceBook:
        """Read what has changed. Raises what Postgres raises."""
        with self._reading, transaction(engine) as connection:
            self._book = book = refresh_price_book(connection, self._book or PriceBook(0, []))
            self._read_at = now
        return book


async def keep_reading(read: Callable[[], Awaitable[object]], stop: asyncio.Event) -> None:
    """Read the prices every few seconds, until `stop` is set; a reading that is under way is finished."""
    while not stop.is_set():
        try:
            await read()
        except Exception as error:
            if diagnose(error) is Failure.POISON:
                log.exception("the prices can't be read")
            else:
                log.warning("the prices can't be read now", error=type(error).__name__)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), READ_EVERY_S)

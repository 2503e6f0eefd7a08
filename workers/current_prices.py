"""The price book that a meter bills with, read again every few seconds."""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Engine

from db.ledger.price_book import refresh_price_book
from db.postgres.engine import transaction
from metering.rules.pricing import PriceBook

PRICES_EVERY_S: Final = 10.0
"""A later price starts at least 60 s ahead and meters know it within 30 s (docs/reference/money-rules.md#which-price-counts)."""


class CurrentPrices:
    """The newest price book that was read. It starts empty."""

    def __init__(self, engine: Engine, *, monotonic: Callable[[], float]) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._due_s = 0.0
        self.book = PriceBook(0, [])

    def load(self) -> None:
        """Read what has changed in it."""
        with transaction(self._engine) as connection:
            self.book = refresh_price_book(connection, self.book)
        self._due_s = self._monotonic() + PRICES_EVERY_S

    def load_if_due(self) -> None:
        """Read it if the last time was PRICES_EVERY_S ago."""
        if self._monotonic() >= self._due_s:
            self.load()

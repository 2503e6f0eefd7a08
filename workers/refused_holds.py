"""Calls that were refused for want of money: what Redis holds of them is noted, and the reload rule asked."""

import threading
from collections.abc import Mapping
from typing import Final

import structlog

from db.attempts.refused_holds import ask_refused, note_refused
from db.ledger.price_book import refresh_price_book
from db.postgres.clock import read_clock
from db.postgres.engine import transaction
from metering.payments.context import Payments
from metering.payments.settling import follow
from metering.rules.holds import first_increment_cents
from metering.rules.pricing import PriceBook
from metering.signals.holds import PAGE, Holds
from workers.periodic import PeriodicTask

PERIOD_S: Final = 2.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class RefusedHolds:
    """What is due because calls were refused, whoever refused them. Any number of processes may do it."""

    def __init__(self, payments: Payments, holds: Holds) -> None:
        self._payments = payments
        self._holds = holds
        self._book = PriceBook(0, [])

    def task(self) -> PeriodicTask:
        """Goes round in every jobs process."""
        return PeriodicTask("refused holds", self.run_once, PERIOD_S)

    def run_once(self, stop: threading.Event) -> None:
        """Note what telephony's own holds were refused, then ask the rule for every note that is new."""
        self._take(stop)
        for reloads in ask_refused(self._payments.engine):
            follow(self._payments, reloads)
            if stop.is_set():
                return

    def _take(self, stop: threading.Event) -> None:
        """From Redis into Postgres. What can't be taken out of Redis after that is noted again, at no harm."""
        while not stop.is_set():
            refused = self._holds.refused()
            if not refused:
                return
            note_refused(self._payments.engine, self._first_increments({each.org_id for each in refused}))
            self._holds.forget_refused(refused)
            if len(refused) < PAGE:
                return

    def _first_increments(self, org_ids: set[int]) -> Mapping[int, int]:
        """What one first increment of each org's dearest tier costs: Redis doesn't know which tier it was."""
        with transaction(self._payments.engine) as connection:
            self._book = book = refresh_price_book(connection, self._book)
            now = read_clock(connection)
        found = {}
        for org_id in org_ids:
            prices = [
                price for tier in book.tiers() if (price := book.in_force(tier, org_id, now)) is not None
            ]
            if prices:
                found[org_id] = first_increment_cents(prices)
        return found

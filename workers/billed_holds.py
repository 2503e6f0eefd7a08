"""Lapsed holds of calls that are billed: whatever has kept their events from ending them, they end.

As where Redis forgot that the event was seen and the call was renewed once more, or a meter of a version before holds billed it.
"""

import threading
from collections import defaultdict
from typing import Final

import redis
import structlog
from sqlalchemy import Engine

from db.ledger.balances import read_balances
from db.ledger.billed_calls import find_billed
from db.postgres.engine import transaction
from metering.runtime.clock import Clock
from metering.signals.gates import Gates
from metering.signals.holds import Holds
from workers.hold_reconciler import EndedCalls
from workers.periodic import PeriodicTask

PERIOD_S: Final = 30.0
PAGE: Final = 1_000
"""About how many calls Postgres is asked for at once."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class BilledHolds:
    """Two at once are harmless: a call is billed once, for ever, and no hold of it counts after that."""

    def __init__(self, engine: Engine, client: redis.Redis, *, clock: Clock) -> None:
        self._engine = engine
        self._gates = Gates(client)
        self._holds = Holds(client)
        self._clock = clock

    def task(self) -> PeriodicTask:
        """Goes round in every jobs process."""
        return PeriodicTask("billed holds", self.run_once, PERIOD_S)

    def run_once(self, stop: threading.Event) -> None:
        """Look at every lapsed hold once."""
        waiting: defaultdict[int, list[int]] = defaultdict(list)
        number = 0
        for org_ids in self._holds.org_ids():
            for org in self._holds.totals(org_ids) if org_ids else ():
                for call_ids in self._holds.lapsed_call_ids(org.org_id, PAGE) if org.lapsed_calls else ():
                    if stop.is_set():
                        return
                    waiting[org.org_id] += call_ids
                    number += len(call_ids)
                    if number >= PAGE:
                        self._end(waiting)
                        waiting.clear()
                        number = 0
        self._end(waiting)

    def _end(self, calls: dict[int, list[int]]) -> None:
        with transaction(self._engine) as connection:
            billed = find_billed(connection, calls) if calls else {}
        if not billed:
            return
        # Read after the debits were seen: these balances hold them.
        balances = read_balances(self._engine, billed)
        followed = self._gates.try_to_follow(balances, self._clock(), EndedCalls(billed))
        number = sum(map(len, billed.values()))
        problem = followed.error if followed.failed else followed.holds_refused
        if problem:
            log.warning("lapsed holds of billed calls can't be ended for now", calls=number, error=problem)
        else:
            log.info("ended lapsed holds of calls that were billed already", calls=number)

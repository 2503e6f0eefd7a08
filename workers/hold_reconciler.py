"""The hold reconciler: the function library is loaded, owed holds end, lapsed ones are told of (docs/reference/holds.md)."""

import threading
from collections.abc import Callable, Iterator
from typing import Final

import redis
import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from db.ledger.balances import read_balances
from db.ledger.owed_hold_ends import delete_owed_ends, list_owed_ends
from db.postgres.engine import transaction
from metering.runtime.clock import Clock
from metering.signals.gates import CallsByOrg, Gates
from metering.signals.hold_library import load_hold_library
from metering.signals.holds import HoldOutcome, Holds
from workers.failures import sentence
from workers.metrics import HELD_CENTS, HOLDS_LAPSED, HOLDS_OPEN
from workers.periodic import PeriodicTask

PERIOD_S: Final = 2.0
"""How soon a Redis that has lost the functions has them again."""
OWED_PAGE: Final = 1_000

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class HoldReconciler:
    """Keeps right what holds need beside the gates. Two at once are harmless."""

    def __init__(self, engine: Engine, client: redis.Redis, *, clock: Clock) -> None:
        self._engine = engine
        self._client = client
        self._gates = Gates(client)
        self._holds = Holds(client)
        self._clock = clock

    def task(self) -> PeriodicTask:
        return PeriodicTask("holds", self.reconcile, PERIOD_S)

    def reconcile(self, stop: threading.Event | None = None) -> None:
        """Do each once; what fails keeps none of the others from being done."""
        failures: list[Exception] = []
        for work in (self._load_library, self._end_owed, self._sweep):
            if stop is not None and stop.is_set():
                return
            _attempt(work, failures)
        if failures:
            raise failures[0]

    def _load_library(self) -> None:
        if load_hold_library(self._client):
            log.info("loaded the functions for holds into Redis")

    def _end_owed(self) -> None:
        """End holds of calls whose events were seen while Redis could not end them.

        Their debits were committed before they were noted, so the balances that are read after that hold them.
        """
        while True:
            with transaction(self._engine) as connection:
                owed = list_owed_ends(connection, OWED_PAGE)
            if not owed:
                return
            followed = self._gates.try_to_follow(
                read_balances(self._engine, owed), self._clock(), EndedCalls(owed)
            )
            problem = followed.error if followed.failed else followed.holds_refused
            if problem:
                log.warning("owed holds can't be ended for now", calls=_count(owed), error=problem)
                return
            with transaction(self._engine) as connection:
                delete_owed_ends(connection, owed)
            log.info("ended holds that were owed", calls=_count(owed))

    def _sweep(self) -> None:
        cents = running = lapsed = 0
        for org_ids in self._holds.org_ids():
            for org in self._holds.sweep(org_ids) if org_ids else ():
                cents += org.totals.held_cents
                running += org.totals.running_calls
                lapsed += org.totals.lapsed_calls
                if org.newly_lapsed:
                    log.warning(
                        "holds have lapsed: these calls' events are late, lost or rejected",
                        org_id=org.totals.org_id,
                        calls=org.newly_lapsed,
                        call_ids=org.lapsed_call_ids,
                    )
        HOLDS_OPEN.set(running)
        HOLDS_LAPSED.set(lapsed)
        HELD_CENTS.set(cents)


class EndedCalls:
    """Calls that have ended, for `Gates`."""

    def __init__(self, calls: CallsByOrg) -> None:
        self._calls = calls

    def ended(self) -> CallsByOrg:
        return self._calls

    def not_billed(self) -> CallsByOrg:
        return {}


class HoldCountsCollector(Collector):
    """What became of holds, asked of Redis when Prometheus asks; nothing is told while Redis can't be asked."""

    def __init__(self, client: redis.Redis) -> None:
        self._holds = Holds(client)

    def describe(self) -> Iterator[CounterMetricFamily]:
        """The metrics' names, without asking Redis."""
        yield CounterMetricFamily("metering_holds_started", "Holds that were granted to calls that started.")
        yield CounterMetricFamily(
            "metering_holds_refused", "Holds that were refused, by reason.", labels=["reason"]
        )
        yield CounterMetricFamily(
            "metering_holds_lapses", "Holds that lapsed: their calls' events are late, lost or rejected."
        )

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        try:
            counts = self._holds.counts()
        except redis.RedisError:
            return
        started, refused, lapsed = self.describe()
        started.add_metric([], counts.get("started", 0))
        for outcome in HoldOutcome:
            if outcome is not HoldOutcome.GRANTED:
                refused.add_metric([outcome.value], counts.get(outcome.value, 0))
        lapsed.add_metric([], counts.get("lapsed", 0))
        yield from (started, refused, lapsed)


def _attempt(work: Callable[[], None], failures: list[Exception]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - raised by whoever asked, after the rest is done
        log.warning("a part of the reconciliation of holds failed", error=sentence(error))
        failures.append(error)


def _count(calls: CallsByOrg) -> int:
    return sum(len(call_ids) for call_ids in calls.values())

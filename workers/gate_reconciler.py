"""The gate reconciler: finds and mends what a crash, a lost message or a restored server left wrong (ARCHITECTURE.md)."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import redis
import structlog
from sqlalchemy import Engine

from db.ledger.balances import pages_of_org_ids, raise_versions, read_balances
from db.postgres.failures import is_away
from metering.rules.gates import Balance, GateState
from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from metering.signals.gates import PAGE, Followed, Gate, Gates
from workers.failures import sentence
from workers.metrics import (
    BALANCES_CENTS,
    GATES_EXHAUSTED,
    GATES_MENDED,
    GATES_SUSPENDED,
    ORGS,
    RECONCILIATION_SECONDS,
)

PERIOD_S: Final = 2.0
"""How long after the end of one reconciliation the next one starts, at the least."""
REST: Final = 4
"""How many times as long as a reconciliation took the pause after it is: reconcilers get at most a fifth of a processor."""
SECOND_LOOK_S: Final = 0.1
"""How long gates that are behind get to follow by themselves: a meter may be between its commit and Redis."""

CLOSED: Final = frozenset({GateState.EXHAUSTED.value, GateState.SUSPENDED.value})
"""The states of gates that let nobody in. One of an org that isn't there stays in either: nobody has resumed it."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class GateReconciliation:
    """What a reconciliation saw and did."""

    orgs: int = 0
    exhausted: int = 0
    suspended: int = 0
    credit_cents: int = 0
    """All balances above 0 together."""
    debt_cents: int = 0
    """All balances below 0 together."""
    mended: int = 0
    """Gates of orgs that were wrong, and were written."""
    orphans: int = 0
    """Gates without an org that were closed."""
    signals: int = 0
    failed: int = 0
    """Gates that were wrong, and couldn't be written."""
    error: str = ""
    """What Redis said to the first of them."""
    pages_failed: int = 0
    took_s: float = 0.0
    late: list[Balance] = field(default_factory=list)
    """Balances that are ahead of their gates, which may yet follow by themselves."""

    def add(self, followed: Followed) -> int:
        """Take in what became of some gates; give how many were written."""
        self.signals += len(followed.signals)
        self.failed += followed.failed
        self.error = self.error or followed.error
        GATES_MENDED.inc(followed.written)
        return followed.written


class GateReconciler:
    """Compares every org's gate with its balance, and mends those that differ. Two at once are harmless."""

    def __init__(
        self, engine: Engine, gates: Gates, *, clock: Clock, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._engine = engine
        self._gates = gates
        self._clock = clock
        self._sleep = sleep

    def run(self, stop: threading.Event) -> None:
        """Reconcile again and again until told to stop, whatever fails: gates that nobody watches would let calls in free."""
        while not stop.is_set():
            pause_s = PERIOD_S
            try:
                reconciled = self.reconcile(stop)
                pause_s = max(PERIOD_S, reconciled.took_s * REST)
            except Exception as error:
                log.warning(
                    "gate reconciliation was interrupted",
                    error=sentence(error),
                    exc_info=not _ends_reconciliation(error),
                )
            stop.wait(pause_s)

    def reconcile(self, stop: threading.Event | None = None) -> GateReconciliation:
        """Compare and mend every gate once; a page that fails is passed over. Raises when Postgres or Redis can't be asked."""
        started_s = time.monotonic()
        reconciled = GateReconciliation()
        for org_ids in pages_of_org_ids(self._engine, PAGE):
            with _page(org_ids, reconciled):
                self._mend(self._gates.read(org_ids), reconciled)
            if stop is not None and stop.is_set():
                return reconciled
        if reconciled.late:
            # Once for all of them: once per page would be seconds beside busy meters. The second look is Redis's own: it writes
            # only gates that still haven't come to the version, or past it.
            (self._sleep if stop is None else stop.wait)(SECOND_LOOK_S)
        for first in range(0, len(reconciled.late), PAGE):
            late = reconciled.late[first : first + PAGE]
            with _page([balance.org_id for balance in late], reconciled):
                reconciled.mended += self._follow(late, reconciled)
        for org_ids in self._gates.org_ids():
            with _page(org_ids, reconciled):
                self._close_orphans(org_ids, reconciled)
            if stop is not None and stop.is_set():
                return reconciled
        reconciled.took_s = time.monotonic() - started_s
        self._tell(reconciled)
        return reconciled

    def _tell(self, reconciled: GateReconciliation) -> None:
        if not reconciled.pages_failed:
            GATES_EXHAUSTED.set(reconciled.exhausted)
            GATES_SUSPENDED.set(reconciled.suspended)
            ORGS.set(reconciled.orgs)
            BALANCES_CENTS.labels("positive").set(reconciled.credit_cents)
            BALANCES_CENTS.labels("negative").set(reconciled.debt_cents)
        RECONCILIATION_SECONDS.observe(reconciled.took_s)
        if reconciled.mended or reconciled.orphans:
            log.warning(
                "reconciled gates that were wrong",
                mended=reconciled.mended,
                orphans=reconciled.orphans,
                orgs=reconciled.orgs,
                signals=reconciled.signals,
                took_ms=round(reconciled.took_s * 1_000, 1),
            )
        if reconciled.failed:
            log.warning(
                "gates are wrong, and can't be reconciled for now",
                gates=reconciled.failed,
                error=reconciled.error,
            )

    def _mend(self, gates: Iterable[Gate], reconciled: GateReconciliation) -> None:
        """Bring a page of gates to the balances, but for those that are only late.

        The gates were read before the balances are: so a gate that is ahead of its balance has seen what Postgres has forgotten,
        and not what a meter has just committed.
        """
        held = {gate.org_id: gate for gate in gates}
        missing: list[Balance] = []
        ahead: dict[int, int] = {}
        for balance in read_balances(self._engine, held):
            reconciled.orgs += 1
            state = balance.gate_state
            reconciled.exhausted += state is GateState.EXHAUSTED
            reconciled.suspended += state is GateState.SUSPENDED
            reconciled.credit_cents += max(balance.balance_cents, 0)
            reconciled.debt_cents += min(balance.balance_cents, 0)
            gate = held[balance.org_id]
            if gate.follows(balance):
                continue
            if gate.version is None:
                missing.append(balance)
            elif gate.version < balance.version:
                reconciled.late.append(balance)
            else:
                ahead[balance.org_id] = gate.version
        reconciled.mended += self._follow(missing, reconciled)
        if ahead:
            raised = raise_versions(self._engine, ahead)
            reach(CrashPoint.RECONCILER_AFTER_RAISE)
            reconciled.mended += self._follow(raised, reconciled)

    def _follow(self, balances: Sequence[Balance], reconciled: GateReconciliation) -> int:
        if balances:
            reach(CrashPoint.RECONCILER_BEFORE_WRITE)
        return reconciled.add(self._gates.try_to_follow(balances, self._clock()))

    def _close_orphans(self, org_ids: Sequence[int], reconciled: GateReconciliation) -> None:
        """Close gates of orgs that Postgres doesn't know: it was restored to a time before they were made."""
        orphans = self._unknown(org_ids)
        gates = self._gates.read(orphans) if orphans else []
        still_open = {gate.org_id: gate for gate in gates if gate.state not in CLOSED}
        # Asked once more: an org that was made between the two may have opened the gate before it was read.
        for org_id in self._unknown(still_open):
            reconciled.orphans += reconciled.add(self._gates.close_orphan(still_open[org_id], self._clock()))

    def _unknown(self, org_ids: Iterable[int]) -> list[int]:
        """Those of `org_ids` that Postgres doesn't know."""
        wanted = list(org_ids)
        there = {balance.org_id for balance in read_balances(self._engine, wanted)} if wanted else set()
        return [org_id for org_id in wanted if org_id not in there]


@contextmanager
def _page(org_ids: Sequence[int], reconciled: GateReconciliation) -> Iterator[None]:
    """Keep what fails in one page from the others, unless nothing can be done without Postgres or Redis."""
    try:
        yield
    except Exception as error:
        if _ends_reconciliation(error):
            raise
        reconciled.pages_failed += 1
        log.exception(
            "a page of gates could not be reconciled",
            lowest_org_id=min(org_ids, default=None),
            highest_org_id=max(org_ids, default=None),
            error=sentence(error),
        )


def _ends_reconciliation(error: Exception) -> bool:
    return isinstance(error, redis.RedisError) or is_away(error)

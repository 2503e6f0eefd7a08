"""The sweep: finds and mends what a crash, a lost message or a restored server left wrong (ARCHITECTURE.md)."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import redis
import structlog
from sqlalchemy import Engine

from db.balances import pages_of_org_ids, raise_versions, read_balances
from db.failures import Failure, diagnose
from metering.rules.gates import Balance, GateState
from metering.runtime.clock import Clock
from metering.signals.gates import PAGE, Gate, Gates
from workers.metrics import GATES_EXHAUSTED, GATES_MENDED, SWEEP_SECONDS

PERIOD_S: Final = 2.0
"""How long after the end of one sweep the next one starts, at the least."""
REST: Final = 4
"""How many times as long as a sweep took the pause after it is: sweeps get at most a fifth of a processor."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class Swept:
    """What a sweep saw and did."""

    orgs: int = 0
    exhausted: int = 0
    mended: int = 0
    removed: int = 0
    signals: int = 0
    took_s: float = 0.0


class Sweep:
    """Compares every org's gate with its balance, and mends those that differ. Two at once are harmless."""

    def __init__(self, engine: Engine, gates: Gates, *, clock: Clock) -> None:
        self._engine = engine
        self._gates = gates
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        """Sweep again and again until told to stop; outlive outages of Postgres and Redis."""
        while not stop.is_set():
            pause_s = PERIOD_S
            try:
                swept = self.sweep(stop)
                pause_s = max(PERIOD_S, swept.took_s * REST)
            except Exception as error:
                if not isinstance(error, redis.RedisError) and diagnose(error) is Failure.POISON:
                    raise
                log.warning("sweep was interrupted", error=f"{type(error).__name__}: {error}".splitlines()[0])
            stop.wait(pause_s)

    def sweep(self, stop: threading.Event | None = None) -> Swept:
        """Compare and mend every gate once. Raises what Postgres or Redis raise."""
        started_s = time.monotonic()
        swept = Swept()
        for org_ids in pages_of_org_ids(self._engine, PAGE):
            self._mend(self._gates.read(org_ids), swept)
            if stop is not None and stop.is_set():
                return swept
        for org_ids in self._gates.org_ids():
            self._remove_strays(org_ids, swept)
        swept.took_s = time.monotonic() - started_s
        GATES_EXHAUSTED.set(swept.exhausted)
        GATES_MENDED.inc(swept.mended + swept.removed)
        SWEEP_SECONDS.observe(swept.took_s)
        if swept.mended or swept.removed:
            log.warning(
                "gates were wrong, and are mended",
                mended=swept.mended,
                removed=swept.removed,
                orgs=swept.orgs,
                signals=swept.signals,
                took_ms=round(swept.took_s * 1_000, 1),
            )
        return swept

    def _mend(self, gates: Iterable[Gate], swept: Swept) -> None:
        """Bring a page of gates to the balances.

        The gates were read before the balances are: so a gate that is ahead of its balance has seen what Postgres has forgotten,
        and not what a meter has just committed.
        """
        held = {gate.org_id: gate for gate in gates}
        wrong: list[Balance] = []
        ahead: dict[int, int] = {}
        for balance in read_balances(self._engine, held):
            swept.orgs += 1
            swept.exhausted += balance.balance_cents <= 0
            gate = held[balance.org_id]
            if gate.follows(balance):
                continue
            if gate.version is not None and gate.version >= balance.version:
                ahead[balance.org_id] = gate.version
            else:
                wrong.append(balance)
        if ahead:
            wrong += raise_versions(self._engine, ahead, self._clock)
        swept.signals += len(self._gates.follow(wrong, self._clock()))
        swept.mended += len(wrong)

    def _remove_strays(self, org_ids: list[int], swept: Swept) -> None:
        """Remove gates of orgs that Postgres doesn't know: it was restored to a time before they were made."""
        there = {balance.org_id for balance in read_balances(self._engine, org_ids)}
        strays = [org_id for org_id in org_ids if org_id not in there]
        for gate in self._gates.read(strays) if strays else []:
            if self._gates.remove(gate, self._clock()):
                swept.removed += 1
                swept.signals += gate.state == GateState.OPEN.value

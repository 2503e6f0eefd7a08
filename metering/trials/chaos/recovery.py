"""How long it takes until all is right again after a fault."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, Final

import psycopg
import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from db.ledger.balances import read_balances
from metering.rules.gates import Balance
from metering.runtime.names import STREAM
from metering.sandbox.stripe.remote import ControlError, control
from metering.signals.gates import Gate, Gates
from metering.trials.chaos.injector import InjectedFault, Roles
from metering.trials.chaos.producer import Producer

POLL_EVERY_S: Final = 0.25
ANSWER_LIMIT_S: Final = 5.0

_AWAY: Final = (
    *(SQLAlchemyError, psycopg.Error, redis.RedisError),
    *(OSError, HTTPException, ControlError, ValueError),
)
"""What is raised where some server is away, by SQLAlchemy or by the driver below it."""

_CREDITED: Final = text("""
    SELECT customer_id, sum(amount_cents)::bigint FROM payment_attempts WHERE status = 'succeeded' GROUP BY customer_id
""")


@dataclass(frozen=True, slots=True)
class Observed:
    """What is looked at, all of it past the links."""

    engine: Engine
    client: redis.Redis
    stripe_url: str
    api_port: int
    org_ids: Sequence[int]
    roles: Roles
    role_names: Sequence[str]
    producers: Sequence[Producer]


@dataclass(slots=True)
class _Mark:
    """What has to have had its effect before all is right again after a fault."""

    struck: InjectedFault
    healed_s: float
    last_id: tuple[int, int]
    """The stream's entries up to here."""
    received_cents: dict[str, int] | None = None
    """What Stripe had taken of each customer; None until it can be asked."""
    billed: bool = False
    credited: bool = False
    balances: list[Balance] | None = None
    """The balances after all that, which gates must have followed."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A fault after which all was right again, and how long after it was over (or another one meanwhile)."""

    struck: InjectedFault
    took_s: float


class Recovery(threading.Thread):
    """Watches until stopped. All is right after a fault when all roles run and the API is ready, all that was pushed before is
    billed, all that Stripe had taken before is credited, and every gate says what its org's balance says.
    """

    def __init__(self, observed: Observed, struck: Callable[[], Sequence[InjectedFault]]) -> None:
        super().__init__(name="recovery", daemon=True)
        self.recovered: list[Recovered] = []
        self._observed = observed
        self._gates = Gates(observed.client)
        self._struck = struck
        self._marks: list[_Mark] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def waiting(self) -> int:
        """After how many faults not all is right yet."""
        with self._lock:
            return len(self._marks)

    def healed(self, struck: InjectedFault) -> None:
        """A fault is over: from here on it is waited until all is right."""
        last_id = max(producer.pushed.last_id for producer in self._observed.producers)
        with self._lock:
            self._marks.append(_Mark(struck, struck.healed_s or time.monotonic(), last_id))

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        while not self._stopped.wait(POLL_EVERY_S):
            with self._lock:
                marks = list(self._marks)
            if not marks:
                continue
            try:
                right = self._look(marks)
            except _AWAY:
                continue
            now_s = time.monotonic()
            for mark in right:
                self.recovered.append(Recovered(mark.struck, now_s - self._since_s(mark, now_s)))
            with self._lock:
                self._marks = [mark for mark in self._marks if mark not in right]

    def _since_s(self, mark: _Mark, now_s: float) -> float:
        """When the last fault was over that had a part in how long it took."""
        others = [each.healed_s for each in self._struck() if each.healed_s is not None]
        return max([mark.healed_s, *(healed_s for healed_s in others if healed_s <= now_s)])

    def _look(self, marks: Sequence[_Mark]) -> list[_Mark]:
        """Those after which all is right now."""
        first = self._first_entry()
        for mark in marks:
            mark.billed = mark.billed or first is None or first > mark.last_id
        if any(not mark.credited for mark in marks):
            self._look_at_credits(marks)
        if not self._all_run() or not self._api_is_ready():
            return []
        done = [mark for mark in marks if mark.billed and mark.credited]
        if any(mark.balances is None for mark in done):
            balances = read_balances(self._observed.engine, self._observed.org_ids)
            for mark in done:
                mark.balances = mark.balances or balances
        gates = self._gates.read(self._observed.org_ids) if done else []
        return [mark for mark in done if _followed(gates, mark.balances or [])]

    def _look_at_credits(self, marks: Sequence[_Mark]) -> None:
        held: Mapping[str, Any] = control(self._observed.stripe_url, "holdings")
        received_cents = {customer: each["received_cents"] for customer, each in held.items()}
        with self._observed.engine.connect() as connection:
            credited_cents = {row[0]: row[1] for row in connection.execute(_CREDITED)}
        for mark in marks:
            if mark.received_cents is None:
                mark.received_cents = received_cents
            mark.credited = mark.credited or all(
                credited_cents.get(customer, 0) >= cents for customer, cents in mark.received_cents.items()
            )

    def _first_entry(self) -> tuple[int, int] | None:
        entries: Any = self._observed.client.xrange(STREAM, count=1)
        if not entries:
            return None
        ms, _, number = entries[0][0].partition(b"-")
        return int(ms), int(number)

    def _all_run(self) -> bool:
        return set(self._observed.role_names) <= set(self._observed.roles.pids())

    def _api_is_ready(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self._observed.api_port, timeout=ANSWER_LIMIT_S)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def _followed(gates: Sequence[Gate], balances: Sequence[Balance]) -> bool:
    """Whether every gate has come to its balance, or past it."""
    held = {gate.org_id: gate for gate in gates}
    return all(_has_come_to(held[balance.org_id], balance) for balance in balances)


def _has_come_to(gate: Gate, balance: Balance) -> bool:
    return gate.follows(balance) or (gate.version is not None and gate.version > balance.version)

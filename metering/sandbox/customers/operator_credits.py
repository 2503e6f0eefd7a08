"""A simulated operator who refills orgs some time after they are exhausted."""

import heapq
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import redis
from sqlalchemy import Engine

from db.ledger.adjustments import adjust
from db.postgres.engine import transaction
from metering.rules.gates import SignalType
from metering.runtime.clock import Clock
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.sandbox.telephony.simulation import OperatorCredit
from metering.signals.gates import Gates

POLL_EVERY_S: Final = 0.1


class OperatorCredits(threading.Thread):
    """Hears who is exhausted, and makes the next of the org's `plan` so long after that, as `metering adjust` would."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        listener: SignalListener,
        plan: Mapping[int, Sequence[OperatorCredit]],
        *,
        clock: Clock,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="operator", daemon=True)
        self.made = 0
        self.cents = 0
        self.left_to_the_reconciler = 0
        """Gates that could not follow at once, because Redis was away."""
        self.error: Exception | None = None
        """What ended it early."""
        self._engine = engine
        self._gates = Gates(client)
        self._listener = listener
        self._left = {org_id: list(operator_credits) for org_id, operator_credits in plan.items()}
        self._numbers = dict.fromkeys(plan, 0)
        self._clock = clock
        self._now_s = now_s
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make no more, and return when the last one is done."""
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        seen = 0
        due: list[tuple[float, int, int]] = []
        try:
            while not self._stopped.wait(POLL_EVERY_S):
                before, seen = seen, self._listener.count
                for heard in self._listener.heard(self._left, before):
                    operator_credits = self._left[heard.message.org_id]
                    if heard.message.type is SignalType.EXHAUSTED and operator_credits:
                        refill = operator_credits.pop(0)
                        due_s = heard.heard_s + refill.after_s
                        heapq.heappush(due, (due_s, heard.message.org_id, refill.amount_cents))
                while due and due[0][0] <= self._now_s():
                    self._credit(*heapq.heappop(due)[1:])
        except Exception as error:  # noqa: BLE001 - whatever it is, the verdict names it
            self.error = error

    def _credit(self, org_id: int, amount_cents: int) -> None:
        self._numbers[org_id] += 1
        with transaction(self._engine) as connection:
            done = adjust(
                connection,
                org_id,
                amount_cents=amount_cents,
                reason="A refill by the demo's operator",
                key=f"demo-refill-{self._numbers[org_id]}",
            )
        self.made += 1
        self.cents += amount_cents
        if done.change is None:
            return
        try:
            self._gates.follow([done.change.balance], self._clock())
        except redis.RedisError:
            self.left_to_the_reconciler += 1

"""A simulated operator who suspends an org for a while, and resumes it."""

import threading
from dataclasses import dataclass

import redis
from sqlalchemy import Engine

from db.accounts.suspensions import Suspension, resume_org, suspend_org
from db.postgres.engine import transaction
from metering.runtime.clock import Clock
from metering.signals.gates import Gates


@dataclass(frozen=True, slots=True)
class SuspensionPlan:
    """Which org is suspended, how long after the start, and for how long."""

    org_id: int
    after_s: float
    for_s: float


class OperatorSuspension(threading.Thread):
    """Suspends the org as `metering org suspend` would, and resumes it: when its time has come, or when it is told to stop."""

    def __init__(self, engine: Engine, client: redis.Redis, plan: SuspensionPlan, *, clock: Clock) -> None:
        super().__init__(name="suspending operator", daemon=True)
        self.plan = plan
        self.made = False
        """Whether the org was suspended, and resumed."""
        self.error: Exception | None = None
        """What ended it early."""
        self._engine = engine
        self._gates = Gates(client)
        self._clock = clock
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Return when the org is resumed, if it was suspended."""
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        try:
            if self._stopped.wait(self.plan.after_s):
                return
            with transaction(self._engine) as connection:
                suspended = suspend_org(connection, self.plan.org_id)
            self._tell(suspended)
            self._stopped.wait(self.plan.for_s)
            with transaction(self._engine) as connection:
                resumed = resume_org(connection, self.plan.org_id)
            self._tell(resumed)
            self.made = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the verdict names it
            self.error = error

    def _tell(self, done: Suspension) -> None:
        try:
            self._gates.follow([done.balance], self._clock())
        except redis.RedisError:
            return  # the reconciler will

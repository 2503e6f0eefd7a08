"""Looking at a running demo: the figures of a moment, put together from telephony, the stream and the ledger."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import redis
from sqlalchemy import Engine

from metering.cli.demo_screen import Figures, OrgFigures
from metering.sandbox.outcome import Outcome
from metering.sandbox.pusher import Pusher
from metering.sandbox.telephony import OrgRecord
from workers.stream import STREAM, backlog

BUSIEST: Final = 10
RATES_OVER_LOOKS: Final = 8
"""Events per second are the mean over so many looks."""


@dataclass(frozen=True, slots=True)
class DemoOrg:
    """An org that was made for the demo."""

    org_id: int
    name: str
    first_balance_cents: int


class Watch:
    """Looks at a demo from its start on."""

    def __init__(
        self, engine: Engine, client: redis.Redis, pusher: Pusher, outcome: Outcome, orgs: list[DemoOrg]
    ) -> None:
        self._engine = engine
        self._client = client
        self._pusher = pusher
        self._outcome = outcome
        self._orgs = orgs
        self._began_s = time.monotonic()
        self._dropped = 0
        self._looks: deque[tuple[float, int, int]] = deque(maxlen=RATES_OVER_LOOKS + 1)
        self.highest_lag = 0

    def look(self, *, draining: bool) -> Figures:
        """The figures of this moment."""
        # What was pushed is asked for first and what was billed last: so nothing is taken for dropped that is on its way.
        pushed = self._pusher.record.pushed
        waiting = backlog(self._client)
        with self._engine.connect() as connection:
            self._outcome.read(connection, self._pusher.stream_ids)
        elapsed_s = time.monotonic() - self._began_s
        billed, rejected = self._outcome.calls, self._outcome.rejections.total()
        self._looks.append((elapsed_s, pushed, billed))
        self.highest_lag = max(self.highest_lag, waiting.lag)
        self._dropped = max(self._dropped, pushed - waiting.length - billed - rejected)
        first_s, first_pushed, first_billed = self._looks[0]
        span_s = elapsed_s - first_s
        return Figures(
            elapsed_s=elapsed_s,
            draining=draining,
            pushed=pushed,
            pushed_per_s=(pushed - first_pushed) / span_s if span_s else 0,
            billed=billed,
            billed_per_s=(billed - first_billed) / span_s if span_s else 0,
            lag=waiting.lag,
            highest_lag=self.highest_lag,
            pending=waiting.pending,
            rejected=rejected,
            dropped=self._dropped,
            balance_cents=sum(self._outcome.balances_cents.values()),
            busiest=[self._org(org) for org in self._orgs[:BUSIEST]],
        )

    def drained(self) -> bool:
        """Whether all that the demo pushed has left the stream; what others pushed doesn't matter."""
        ids = self._pusher.first_and_last
        return ids is None or not self._client.xrange(STREAM, *ids, count=1)

    def _org(self, org: DemoOrg) -> OrgFigures:
        billed = self._outcome.orgs.get(org.org_id, OrgRecord())
        balance_cents = self._outcome.balances_cents[org.org_id]
        return OrgFigures(org.name, billed.calls, billed.cents, balance_cents, org.first_balance_cents)

"""Looking at a running demo: the figures of a moment, put together from telephony, gates, the stream and the ledger."""

import time
from collections import deque
from collections.abc import Collection, Sequence
from statistics import median
from typing import Final

import redis
from sqlalchemy import Engine

from db.attempts.reload_status import OrgCharges, read_charges
from metering.rules.gates import GateState
from metering.rules.reloads import SkipReason
from metering.runtime.clock import Clock
from metering.runtime.names import STREAM
from metering.sandbox.telephony.admission_log import AdmissionLog
from metering.sandbox.telephony.call_record import OrgRecord
from metering.sandbox.telephony.signal_listener import ReceivedSignal, SignalListener
from metering.sandbox.telephony.switch import Switch
from metering.signals.gates import Gates
from metering.trials.demo.screen import ChargeFigures, Figures, GateFigures, OrgFigures
from metering.trials.demo.setup import DemoOrg
from metering.trials.exhaustions import Exhaustions, paired
from metering.trials.outcome import Outcome
from workers.stream import backlog

BUSIEST: Final = 9
RATES_OVER_SNAPSHOTS: Final = 8
"""Events per second are the mean over so many looks."""


def push_to_gate_s(
    exhaustions: Exhaustions, heard: Sequence[ReceivedSignal], admissions: AdmissionLog
) -> list[float]:
    """How long it took, in seconds, each time that an event closed a gate: until the signal was heard.

    From just before the event was sent to Redis for the first time, until telephony had the signal in hand from Pub/Sub: both on
    telephony's own clock, so that waiting for a processor counts as well.
    """
    took_s = []
    for org_id, closed in exhaustions.of.items():
        signals = ((each.message, each) for each in heard if each.message.org_id == org_id)
        for exhaustion, signal in paired(closed, signals):
            call = admissions.calls.get((org_id, exhaustion.call_id or 0))
            if call is not None and call.pushed_s is not None:
                took_s.append(signal.heard_s - call.pushed_s)
    return took_s


class Snapshots:
    """Looks at a demo from its start on."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        switch: Switch,
        listener: SignalListener,
        outcome: Outcome,
        orgs: list[DemoOrg],
        *,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._client = client
        self._gates = Gates(client)
        self._switch = switch
        self._listener = listener
        self._outcome = outcome
        self._orgs = orgs
        self._clock = clock
        self._org_ids = {org.org_id for org in orgs}
        self._closings = Exhaustions(outcome.org_ids)
        self._began_s = time.monotonic()
        self._dropped = 0
        self._looks: deque[tuple[float, int, int, int]] = deque(maxlen=RATES_OVER_SNAPSHOTS + 1)
        self.highest_lag = 0

    def take(self, *, draining: bool) -> Figures:
        """The figures of this moment."""
        # What was pushed is asked for first and what was billed last: so nothing is taken for dropped that is on its way.
        pushed = self._switch.record.pushed
        heard = self._listener.heard(self._org_ids)
        waiting = backlog(self._client)
        states = {gate.org_id: gate.state for gate in self._gates.read([org.org_id for org in self._orgs])}
        with self._engine.connect() as connection:
            self._outcome.read(connection, self._switch.stream_ids)
            self._closings.read(connection)
            charges = read_charges(connection, self._org_ids, self._clock())
        elapsed_s = time.monotonic() - self._began_s
        billed, rejected = self._outcome.calls, self._outcome.rejections.total()
        self._looks.append((elapsed_s, pushed, billed, len(heard)))
        self.highest_lag = max(self.highest_lag, waiting.lag)
        self._dropped = max(self._dropped, pushed - waiting.length - billed - rejected)
        first_s, first_pushed, first_billed, first_heard = self._looks[0]
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
            gates=self._gate_figures(states, heard, (len(heard) - first_heard) / span_s if span_s else 0),
            charges=self._charge_figures(charges.values()),
            busiest=[self._org(org, states[org.org_id], charges[org.org_id]) for org in self._orgs[:BUSIEST]],
        )

    def drained(self) -> bool:
        """Whether all that the demo pushed has left the stream; what others pushed doesn't matter."""
        ids = self._switch.first_and_last
        return ids is None or not self._client.xrange(STREAM, *ids, count=1)

    def _gate_figures(
        self, states: dict[int, str | None], heard: Sequence[ReceivedSignal], signals_per_s: float
    ) -> GateFigures:
        admissions = self._switch.admissions
        took_s = push_to_gate_s(self._closings, heard, admissions)
        is_open = sum(state == GateState.OPEN.value for state in states.values())
        suspended = sum(state == GateState.SUSPENDED.value for state in states.values())
        return GateFigures(
            open=is_open,
            exhausted=len(states) - is_open - suspended,
            suspended=suspended,
            running=self._switch.running,
            started=len(admissions.calls),
            refused_inbound=admissions.directions["inbound"],
            refused_outbound=admissions.directions["outbound"],
            unanswered=admissions.unanswered,
            signals=len(heard),
            signals_per_s=signals_per_s,
            push_to_gate_median_s=median(took_s) if took_s else None,
            push_to_gate_longest_s=max(took_s, default=None),
        )

    def _charge_figures(self, charges: Collection[OrgCharges]) -> ChargeFigures:
        limited = [each.month_left_cents for each in charges if each.month_left_cents is not None]
        return ChargeFigures(
            open=sum(each.attempts_open + each.attempts_challenged for each in charges),
            paused=sum(each.paused_for is not None for each in charges),
            waiting=sum(each.waits_for == SkipReason.MONTHLY_LIMIT for each in charges),
            month_left_cents=sum(limited) if limited else None,
        )

    def _org(self, org: DemoOrg, state: str | None, charges: OrgCharges) -> OrgFigures:
        billed = self._outcome.orgs.get(org.org_id, OrgRecord())
        balance_cents = self._outcome.balances_cents[org.org_id]
        return OrgFigures(
            org.name,
            _pays_by(org, charges),
            billed.cents,
            balance_cents,
            org.first_balance_cents,
            state or "missing",
        )


def _pays_by(org: DemoOrg, charges: OrgCharges) -> str:
    """How an org gets its money, and what stands in the way of it."""
    if org.role is None:
        return "operator"
    if charges.paused_for is not None:
        return "reload, paused"
    if charges.waits_for == SkipReason.MONTHLY_LIMIT:
        return "reload, capped"
    if charges.attempts_challenged:
        return "3DS, waiting"
    return "reload" if org.role.persona.reloads else org.role.persona.value

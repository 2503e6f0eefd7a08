"""Gates and signals of two orgs, whatever changes them and in whatever order sessions come to Redis, beside a model of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from db.ledger.balances import read_balances
from metering.rules.gates import Balance
from metering.rules.payments import IntentStatus
from metering.signals.gates import Gates, SeenCalls, Signal
from tests.payments.reload_world import Site
from tests.signals.listening import gate, signals_log
from workers.gate_reconciler import GateReconciler

ORGS = (1, 2)
CENTS = st.sampled_from((1, 80, 500, 1_500, 4_000))
ORG = st.sampled_from(ORGS)


def state_of(balance: Balance) -> str:
    """What the gate has to be, said once more."""
    return "suspended" if balance.suspended else "open" if balance.balance_cents > 0 else "exhausted"


@dataclass
class Model:
    """One org's gate: the state that Redis holds, the version that it knows, and all that was said of it."""

    state: str = "exhausted"
    version: int = -1
    said: list[tuple[str, str, int]] = field(default_factory=list)

    def follow(self, balance: Balance) -> None:
        if balance.version <= self.version:
            return
        before, self.state, self.version = self.state, state_of(balance), balance.version
        if self.state != before:
            names = {
                "suspended": "org.suspended",
                "open": "balance.restored",
                "exhausted": "balance.exhausted",
            }
            type_ = "org.resumed" if before == "suspended" else names[self.state]
            self.said.append((type_, self.state, self.version))


class LaterGates(Gates):
    """What was committed is kept: some session brings it to Redis later, in any order, or never.

    Whether the org is suspended the program must know as the walk does: a model that believed the program would open with it.
    """

    def __init__(self, kept: list[Balance], suspended: Mapping[int, bool]) -> None:
        self._kept = kept
        self._suspended = suspended

    def follow(
        self,
        balances: Iterable[Balance],
        at: datetime,  # noqa: ARG002
        seen: SeenCalls | None = None,  # noqa: ARG002
    ) -> list[Signal]:
        for each in balances:
            assert each.suspended is self._suspended[each.org_id], f"{each} doesn't know"
            self._kept.append(each)
        return []


class SuspensionMachine(RuleBasedStateMachine):
    """Org 1 has a card and reloads; org 2 has none. `expected` is what each org's balance and suspension have come to."""

    tally: ClassVar[Counter[str]] = Counter()

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.world = site.fresh()
        self.world.make_org(2)
        self.kept: list[Balance] = []
        self.gates = Gates(self.world.client)
        self.models = {org_id: Model() for org_id in ORGS}
        self.suspended = dict.fromkeys(ORGS, False)
        self.world.payments = replace(self.world.payments, gates=LaterGates(self.kept, self.suspended))
        self.world.save_card()
        self.world.settings(enabled=True, minimum_cents=500, amount_cents=2_000)
        self.world.adjust(3_000)
        self.copy: dict[int, dict[str, str]] = {}

    @rule(org_id=ORG, cents=CENTS)
    def debit(self, org_id: int, cents: int) -> None:
        self._count("debits")
        self.world.call(cents, org_id=org_id)

    @rule(org_id=ORG, cents=CENTS, back=st.booleans())
    def adjust(self, org_id: int, cents: int, back: bool) -> None:
        self._count("adjustments")
        self.world.adjust(-cents if back else cents, org_id=org_id)

    @rule()
    def top_up(self) -> None:
        self._count("top-ups")
        self.world.top_up(700)

    @rule(cents=CENTS)
    def refund(self, cents: int) -> None:
        paid = [each for each in self.world.intents() if each["status"] == IntentStatus.SUCCEEDED]
        if not paid:
            return
        refunded = sum(each.amount_cents for each in self.world.payments.stripe.refunds_of(paid[-1]["id"]))
        left = paid[-1]["amount"] - refunded
        if left:
            self._count("refunds")
            self.world.sandbox.refund(paid[-1]["id"], amount_cents=min(cents, left))
            self.world.deliver(*self.world.events("charge.refunded")[-1:])

    @rule(hours=st.sampled_from((0, 1, 25)), drained=st.booleans())
    def reload(self, hours: int, drained: bool) -> None:
        """The jobs work, mostly with too low a balance for them to leave it so; of a suspended org they charge nothing."""
        charged = self.world.charged()
        if drained and (above_cents := self.world.balance() - 400) > 0:
            self.world.adjust(-above_cents)
        self.world.clock.move(hours=hours)
        self.world.reconcile()
        made = self.world.charged() - charged
        self._count("reloads", made)
        assert not (made and self.suspended[1]), "a suspended org was charged"

    @rule(org_id=ORG)
    def suspend(self, org_id: int) -> None:
        self._count("suspensions")
        before, self.suspended[org_id] = self.suspended[org_id], True
        assert self.world.suspend_org(org_id).changed is not before

    @rule(hours=st.sampled_from((0, 25)))
    def a_suspended_org_runs_empty(self, hours: int) -> None:
        """It would be reloaded, if it weren't suspended."""
        self.suspend(1)
        self.reload(hours, drained=True)

    @rule(org_id=ORG)
    def resume(self, org_id: int) -> None:
        self._count("resumptions")
        before, self.suspended[org_id] = self.suspended[org_id], False
        assert self.world.resume_org(org_id).changed is before

    @rule(newest_first=st.booleans(), number=st.integers(1, 6), together=st.booleans())
    def sessions_come_to_redis(self, newest_first: bool, number: int, together: bool) -> None:
        """Some of what was committed, in whatever order; of both orgs in one call, or each in its own."""
        for _ in range(number):
            if not self.kept:
                return
            self._count("calls to follow")
            batch = [self.kept.pop(-1 if newest_first else 0)]
            other = next((each for each in self.kept if each.org_id != batch[0].org_id), None)
            if together and other is not None:
                self.kept.remove(other)
                batch.append(other)
            self.gates.follow(batch, self.world.clock())
            for each in batch:
                self.models[each.org_id].follow(each)

    @rule(number=st.integers(1, 3))
    def a_session_comes_late(self, number: int) -> None:
        """With what it committed long ago, after those who committed later."""
        self.sessions_come_to_redis(newest_first=True, number=number, together=False)

    @rule()
    def a_session_dies(self) -> None:
        """Between its commits and Redis."""
        self._count("sessions lost")
        self.kept.clear()

    @rule()
    def redis_loses_everything(self) -> None:
        self._count("Redis lost")
        self.world.client.flushdb()
        self.models = {org_id: Model() for org_id in ORGS}

    @rule()
    def redis_is_copied(self) -> None:
        self.copy = {org_id: gate(self.world.client, org_id) for org_id in ORGS}

    @rule()
    def redis_is_restored(self) -> None:
        """To an earlier time, with an empty log."""
        self._count("Redis restored")
        self.world.client.flushdb()
        for org_id in ORGS:
            self.models[org_id] = Model()
            if held := self.copy.get(org_id):
                self.world.client.hset(f"gate:{org_id}", mapping=held)  # type: ignore[arg-type]
                self.models[org_id] = Model(held["state"], int(held["version"]))

    @rule(org_id=ORG)
    def somebody_opens_a_gate(self, org_id: int) -> None:
        if gate(self.world.client, org_id):
            self._count("gates opened by hand")
            self.world.client.hset(f"gate:{org_id}", "state", "open")
            self.models[org_id].state = "open"

    @rule()
    def gates_are_reconciled(self) -> None:
        self._count("reconciliations")
        GateReconciler(
            self.world.engine, self.gates, clock=self.world.clock, sleep=lambda _: None
        ).reconcile()
        for balance in read_balances(self.world.engine, ORGS):
            self.models[balance.org_id].follow(balance)
            assert balance.suspended is self.suspended[balance.org_id]
            assert gate(self.world.client, balance.org_id) == {
                "state": state_of(balance),
                "balance_cents": str(balance.balance_cents),
                "version": str(balance.version),
            }

    @invariant()
    def gates_and_signals_are_as_the_model_says(self) -> None:
        self._count("steps")
        said: dict[int, list[tuple[str, str, int]]] = {org_id: [] for org_id in ORGS}
        for each in signals_log(self.world.client):
            if "version" in each:
                said[each["org_id"]].append((each["type"], each["state"], each["version"]))
        for org_id, model in self.models.items():
            assert said[org_id] == model.said
            assert [each[2] for each in model.said] == sorted({each[2] for each in model.said})
            held = gate(self.world.client, org_id)
            assert held.get("state", "exhausted") == model.state
            assert int(held.get("version", -1)) == model.version

    def teardown(self) -> None:
        """In the end the reconciler brings all right, and the ledger is sound."""
        self.gates_are_reconciled()
        self.gates_and_signals_are_as_the_model_says()
        report = self.world.audit()
        assert report.passed, report.violations

    def _count(self, what: str, number: int = 1) -> None:
        self.tally[what] += number

"""A random walk over one org's payments, held against what its clients wished for and what Stripe says it holds.

Each example has an org of its own in a world that they share. Nothing runs by itself: webhooks are brought, reconcilers run and
crashes placed by the walk's own steps, so that a failing walk can be repeated.
"""

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from metering.payments.settling import settle_and_follow
from metering.payments.unbooked import book_payment, find_unbooked
from metering.rules.payments import IntentSeen, IntentStatus
from tests.payments.org_backup import OrgBackup
from tests.payments.payments_clients import TOP_UP_CRASHES, Clients, Wish
from tests.payments.payments_dashboard import Dashboard
from tests.payments.payments_walk import ASTRAY, FAULTS, INDEX, OPERATOR, OTHER_CRASHES, SETTLEMENTS


class PaymentsMachine(Clients, Dashboard):
    """The walk: what reaches us, and when, and that in the end the ledger is what Stripe holds."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[IntentSeen] = []
        self.adjustments: list[tuple[str, int]] = []
        self.backup: tuple[int, int, OrgBackup] | None = None
        """Of which step, how many adjustments there were, and the rows."""

    @initialize(settlement=SETTLEMENTS)
    def begin(self, settlement: tuple[str, float, bool]) -> None:
        self.settle_in(settlement)
        self.world.make_org(self.org_id)
        self.save_cards()
        self.wish_plainly(2_000)

    @rule(cents=st.sampled_from([-700, 300]))
    def adjust(self, cents: int) -> None:
        self.steps += 1
        key = f"adjustment-{next(self.keys)}"
        self.adjustments.append((key, cents))
        self.world.adjust(cents, org_id=self.org_id, key=key)

    @rule(picks=st.lists(INDEX, min_size=1, max_size=4), crash=OTHER_CRASHES, fault=FAULTS)
    def bring_webhooks(self, picks: list[int], crash: Any, fault: Any) -> None:
        """Some webhooks, of now or long ago, in any order, some for the second time; most are never brought."""
        events = self.events()
        self.set_fault(fault)
        with self.crashing(crash):
            for pick in picks:
                for event in self.picked(pick, events):
                    self.if_available(self.world.deliver, event)
        self.world.sandbox.clear_faults()

    @rule(which=INDEX)
    def read(self, which: int) -> None:
        """Somebody retrieves a PaymentIntent with what belongs to it, and is then in no hurry."""
        for intent in self.picked(which, self.intents()):
            self.readings.append(self._reading(intent))

    @precondition(lambda self: self.intents("succeeded"))
    @rule(which=INDEX, refunded=st.booleans(), again=st.booleans())
    def overtake(self, which: int, refunded: bool, again: bool) -> None:
        """One reads, Stripe goes on and another hears of all, and only then the first one settles what he has read."""
        give_back, take_back = ("refund", "fail_refund") if refunded else ("open_dispute", "win_dispute")
        sandbox = self.world.sandbox
        self.steps += 1
        for intent in self.picked(which, self.intents("succeeded")):
            readings = [self._reading(intent)]
            made = self.if_possible(getattr(sandbox, give_back), intent["id"], amount_cents=100)
            readings.append(self._reading(intent))
            if made is not None and again:
                self.if_possible(getattr(sandbox, take_back), made["id"])
            self.world.deliver(*self.events())
            for reading in reversed(readings):
                settle_and_follow(self.world.payments, reading)

    @precondition(lambda self: self.readings)
    @rule(which=INDEX, crash=OTHER_CRASHES)
    def settle_a_reading(self, which: int, crash: Any) -> None:
        """However outdated it is."""
        with self.crashing(crash):
            settle_and_follow(self.world.payments, self.readings[which % len(self.readings)])

    @rule(crash=OTHER_CRASHES, fault=FAULTS)
    def reconcile(self, crash: Any, fault: Any) -> None:
        self.set_fault(fault)
        with self.crashing(crash):
            self.world.process_due_attempts()
        self.world.sandbox.clear_faults()

    @rule(by=st.sampled_from([{"seconds": 70}, {"minutes": 20}, {"hours": 1}, {"hours": 9}, {"hours": 26}]))
    def wait(self, by: dict[str, float]) -> None:
        self.world.clock.move(**by)

    @rule(by=ASTRAY)
    def go_astray(self, by: timedelta) -> None:
        """The clock of the machine that works is wrong, or right again."""
        self.world.go_astray(by)

    @rule()
    def back_up(self) -> None:
        assert self.world.admin is not None
        rows = OrgBackup(self.world.admin, self.org_id)
        self.backup = (self.steps, len(self.adjustments), rows)

    @precondition(lambda self: self.backup is not None)
    @rule(drained=st.booleans())
    def restore(self, drained: bool) -> None:
        """Postgres is brought back to an earlier time, and the operators give again what they gave by hand."""
        assert self.backup is not None
        step, adjusted, rows = self.backup
        rows.restore()
        self.forget_since(step)
        for key, cents in self.adjustments[adjusted:]:
            self.world.adjust(cents, org_id=self.org_id, key=key)
        if drained:
            self.drain()

    @rule(
        hours=st.sampled_from([0.1, 22, 26]),
        crash=TOP_UP_CRASHES,
        read=st.booleans(),
        anew=st.booleans(),
        fault=FAULTS,
    )
    def restore_and_repeat(self, hours: float, crash: Any, read: bool, anew: bool, fault: Any) -> None:
        """Ask with a key, have Postgres brought back to before, and ask again: it is charged once.

        After a day Stripe has forgotten the key, and only the list of events brings the charge back.
        """
        self.back_up()
        number = next(self.keys)
        wish = Wish(3_000 + number, self.card, f"key-{number}", self.hour())
        self.wishes.append(wish)
        self._ask(wish, fault, crash, False)
        self.restore(drained=False)
        self.world.clock.move(hours=hours)
        if read or hours > 24:
            self.world.read_events()
        if anew:
            self.save_cards()
        again = Wish(wish.amount_cents, wish.method, wish.key, self.hour())
        self.wishes.append(again)
        self._ask(again, None, None, False)
        charged = [each for each in self.intents("succeeded") if each["amount"] == wish.amount_cents]
        assert len(charged) <= 1, "one key, two charges"

    @rule()
    def drain(self) -> None:
        """Nothing goes wrong for half a minute, and by hand paid is booked by hand: then the ledger is what Stripe holds."""
        self.steps += 1
        self.world.clock.move(minutes=16)
        self.world.process_due_attempts()
        self.world.read_events()
        ours = {each["id"] for each in self.intents("succeeded")}
        by_hand = ours & self.dashboard
        rows = self.world.rows(
            "SELECT source_key FROM transactions WHERE org_id = :org_id AND kind = 'credit'",
            org_id=self.org_id,
        )
        left = by_hand - {each.source_key for each in rows}
        listed = {
            each.payment_intent_id
            for each in find_unbooked(self.world.engine, self.world.payments.stripe)
            # A restore may have lost whose customer has paid: then it is nobody's, until an operator books it.
            if each.org_id == self.org_id or (each.org_id is None and each.payment_intent_id in ours)
        }
        assert listed == left, "what isn't booked is what somebody has paid by hand, and it is listed"
        for intent_id in left:
            book_payment(self.world.payments, self.org_id, intent_id, "by hand", OPERATOR)
        adjusted_cents = sum(cents for _, cents in self.adjustments)
        assert self.world.balance(self.org_id) == self.held_cents() + adjusted_cents

    def teardown(self) -> None:
        """Bring everything to its end, and compare."""
        self.world.go_astray(timedelta())
        for intent in self.intents("processing"):
            self.world.sandbox.finish_processing(intent["id"])
        for hours in (1, 25, 26):
            self.world.clock.move(hours=hours)
            self.world.read_events()  # what a restore has undone comes back by it
            self.world.process_due_attempts()
        self.drain()
        self.undo_edits()
        self.cancel_unknown()
        self.world.mend_gates()
        assert [each.status for each in self.world.attempts(self.org_id) if each.open] == []
        self.nobody_is_charged_twice_for_a_wish()

    def cancel_unknown(self) -> None:
        """What a restore has lost and an edit kept from coming back is cancelled at Stripe, as the audit asks for it."""
        known = {each.payment_intent_id for each in self.world.attempts(self.org_id)}
        for status in ("requires_action", "requires_confirmation", "requires_payment_method"):
            for intent in self.intents(status, dashboard=False):
                if intent["id"] not in known:
                    self.world.stripe.v1.payment_intents.cancel(intent["id"])
        self.world.clock.move(minutes=1)
        self.world.read_events()

    def _reading(self, intent: dict[str, Any]) -> IntentSeen:
        """What a look-up of the intent would settle."""
        stripe = self.world.payments.stripe
        seen = stripe.retrieve_intent(intent["id"])
        if seen.status != IntentStatus.SUCCEEDED:
            return IntentSeen(seen)
        return IntentSeen(seen, stripe.refunds_of(seen.id), stripe.disputes_of(seen.id))

"""A random walk over one org's payments, held against what its clients wished for and what Stripe says it holds.

Each example has an org of its own in a world that they share. Nothing runs by itself: webhooks are brought, reconcilers run and
crashes placed by the walk's own steps, so that a failing walk can be repeated.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from metering.payments.cards import ensure_customer
from metering.payments.errors import ProviderUnavailableError
from metering.payments.outcomes import TopUpMade, TopUpOutcome
from metering.payments.settling import settle_and_follow
from metering.payments.top_ups import mark_answered, mark_unanswered, top_up
from metering.rules.payments import IntentSeen, IntentStatus
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.values import shown
from tests.payments.crashing import crashing_at
from tests.payments.world import World

PATIENCE_HOURS = 20
"""How long a client without a key repeats a request that got no answer: the contract lets it join for 24 hours."""

FAULTS = (
    st.none()
    | st.none()
    | st.tuples(
        st.sampled_from(
            [
                RequestFault.DROP_BEFORE,
                RequestFault.DROP_AFTER,
                RequestFault.ERROR_BEFORE,
                RequestFault.ERROR_AFTER,
                RequestFault.ERROR_STORED,
                RequestFault.RATE_LIMITED,
            ]
        ),
        st.sampled_from(["payment_intents.create", "payment_intents.*", "*"]),
        st.integers(1, 5),
    )
)
TOP_UP_POINTS = [
    CrashPoint.TOP_UP_AFTER_ATTEMPT,
    CrashPoint.CHARGE_BEFORE_SEND,
    CrashPoint.CHARGE_AFTER_SEND,
    CrashPoint.SETTLE_AFTER_WRITE,
    CrashPoint.SETTLE_AFTER_COMMIT,
    CrashPoint.TOP_UP_BEFORE_ANSWER,
]
TOP_UP_CRASHES = st.none() | st.none() | st.tuples(st.sampled_from(TOP_UP_POINTS), st.just(1))
OTHER_CRASHES = (
    st.none()
    | st.none()
    | st.tuples(
        st.sampled_from(
            [
                CrashPoint.SETTLE_AFTER_WRITE,
                CrashPoint.SETTLE_AFTER_COMMIT,
                CrashPoint.CHARGE_BEFORE_CANCEL,
                CrashPoint.CHARGE_AFTER_CANCEL,
            ]
        ),
        st.integers(1, 3),
    )
)
SETTLEMENTS = st.sampled_from(
    [("usd", 1.0, False), ("usd", 1.0, True), ("eur", 0.85, False), ("gbp", 0.8, True), ("gbp", 0.74, True)]
)
"""What the account at Stripe settles in, at which rate, and whether a dispute's fee is a balance transaction of its own."""
ASTRAY = st.sampled_from(
    [
        timedelta(),
        timedelta(seconds=-70),
        timedelta(hours=-1),
        timedelta(hours=26),
        timedelta(days=-40),
        timedelta(days=40),
    ]
)
"""How far a machine's own clock is ahead."""
INDEX = st.integers(0, 10**6)
"""Picks one of however many there are."""


@dataclass
class Wish:
    """A client wants one charge, and asks until it is told of one."""

    amount_cents: int
    method: str
    key: str | None
    began_hour: float
    told: TopUpOutcome | None = None


class PaymentsMachine(RuleBasedStateMachine):
    """The walk. `world` is set by a subclass."""

    world: ClassVar[World]
    org_ids: ClassVar[Iterator[int]]

    def __init__(self) -> None:
        super().__init__()
        self.org_id = next(self.org_ids)
        self.world.go_astray(timedelta())
        self.wishes: list[Wish] = []
        self.readings: list[IntentSeen] = []
        self.adjusted_cents = 0
        self.keys = itertools.count(1)
        store = self.world.sandbox._store
        self.before = {
            kind: len(store.ids(kind)) for kind in ("event", "payment_intent", "refund", "dispute")
        }

    @initialize(settlement=SETTLEMENTS)
    def begin(self, settlement: tuple[str, float, bool]) -> None:
        self.settle_in(settlement)
        self.world.make_org(self.org_id)
        self.card = self.world.save_card(org_id=self.org_id)
        customer = ensure_customer(self.world.payments, self.org_id)
        self.challenged_card = self.world.sandbox.save_card(customer, card="pm_card_threeDSecure2Required")
        self.wish_plainly(2_000)

    # What clients do

    @rule(
        amount_cents=st.sampled_from([1_000, 2_000]),
        challenged=st.booleans(),
        keyed=st.booleans(),
        fault=FAULTS,
        crash=TOP_UP_CRASHES,
        hangs_up=st.booleans(),
    )
    def wish(
        self, amount_cents: int, challenged: bool, keyed: bool, fault: Any, crash: Any, hangs_up: bool
    ) -> None:
        """Ask for a charge; if the same one is still being asked for, ask again for that."""
        method = self.challenged_card if challenged else self.card
        wanted = next(
            (each for each in self._waiting() if (each.amount_cents, each.method) == (amount_cents, method)),
            None,
        )
        if wanted is None:
            key = f"key-{next(self.keys)}" if keyed else None
            wanted = Wish(amount_cents, method, key, self._hour())
            self.wishes.append(wanted)
        self._ask(wanted, fault, crash, hangs_up)

    @rule(amount_cents=st.sampled_from([1_000, 2_000]))
    def wish_plainly(self, amount_cents: int) -> None:
        """As nearly all clients do."""
        self.wish(amount_cents, False, False, None, None, False)

    @precondition(lambda self: self._waiting())
    @rule(which=INDEX, fault=FAULTS, crash=TOP_UP_CRASHES)
    def repeat(self, which: int, fault: Any, crash: Any) -> None:
        """Ask again for what wasn't answered."""
        waiting = self._waiting()
        self._ask(waiting[which % len(waiting)], fault, crash, False)

    @rule(
        point=st.just(CrashPoint.CHARGE_AFTER_SEND) | st.sampled_from(TOP_UP_POINTS),
        hours=st.sampled_from([0.1, 23.5, 26]),
        fault=FAULTS,
    )
    def lose_and_repeat(self, point: CrashPoint, hours: float, fault: Any) -> None:
        """Ask with a key, get no answer, and ask again after a time in which nothing of ours ran."""
        number = next(self.keys)  # also in the amount: this one joins nobody's
        wish = Wish(3_000 + number, self.card, f"key-{number}", self._hour())
        self.wishes.append(wish)
        self._ask(wish, fault, (point, 1), False)
        if wish.told is None:
            self.world.clock.move(hours=hours)
            self._ask(wish, None, None, False)

    @precondition(lambda self: any(each.key and each.told for each in self.wishes))
    @rule(which=INDEX)
    def repeat_told(self, which: int) -> None:
        """Ask again with a key that was answered: the answer is the same, for ever."""
        told = [each for each in self.wishes if each.key and each.told]
        wish = told[which % len(told)]
        assert self._top_up(wish)[0] == wish.told

    @rule(cents=st.sampled_from([-700, 300]))
    def adjust(self, cents: int) -> None:
        self.adjusted_cents += cents
        self.world.adjust(cents, org_id=self.org_id)

    # What customers, banks and operators of Stripe do

    @precondition(lambda self: self._intents("requires_action"))
    @rule(which=INDEX, succeeds=st.booleans())
    def authenticate(self, which: int, succeeds: bool) -> None:
        for intent in self._picked(which, self._intents("requires_action")):
            self.world.sandbox.authenticate(intent["id"], succeeds=succeeds)

    @precondition(lambda self: self._intents("processing"))
    @rule(which=INDEX, succeeds=st.booleans())
    def finish_processing(self, which: int, succeeds: bool) -> None:
        for intent in self._picked(which, self._intents("processing")):
            self.world.sandbox.finish_processing(intent["id"], succeeds=succeeds)

    @rule(mood=st.sampled_from(["declines", "wants authentication", "slow", "well", "well"]))
    def change_card(self, mood: str) -> None:
        """The bank of the default card thinks otherwise."""
        self.world.sandbox.mend_card(self.card)
        self.world.sandbox.slow_card(self.card, slow=mood == "slow")
        if mood == "declines":
            self.world.sandbox.fail_card(self.card, decline_code="insufficient_funds")
        elif mood == "wants authentication":
            self.world.sandbox.fail_card(self.card, decline_code="authentication_required")

    @rule(settlement=SETTLEMENTS)
    def settle_in(self, settlement: tuple[str, float, bool]) -> None:
        """The account settles in another currency, or the rate has moved: nothing to any org."""
        currency, exchange_rate, fee_apart = settlement
        self.world.sandbox.set_settlement(currency, exchange_rate=exchange_rate, fee_apart=fee_apart)

    @precondition(lambda self: self._intents("succeeded"))
    @rule(which=INDEX, amount_cents=st.none() | st.integers(1, 400))
    def refund(self, which: int, amount_cents: int | None) -> None:
        for intent in self._picked(which, self._intents("succeeded")):
            self._if_possible(self.world.sandbox.refund, intent["id"], amount_cents=amount_cents)

    @precondition(lambda self: self._of_ours("refund"))
    @rule(which=INDEX)
    def fail_refund(self, which: int) -> None:
        for refund in self._picked(which, self._of_ours("refund")):
            self._if_possible(self.world.sandbox.fail_refund, refund["id"])

    @precondition(lambda self: self._intents("succeeded"))
    @rule(which=INDEX, inquiry=st.booleans(), amount_cents=st.none() | st.just(250))
    def dispute(self, which: int, inquiry: bool, amount_cents: int | None) -> None:
        for intent in self._picked(which, self._intents("succeeded")):
            self._if_possible(
                self.world.sandbox.open_dispute, intent["id"], amount_cents=amount_cents, inquiry=inquiry
            )

    @precondition(lambda self: self._of_ours("dispute"))
    @rule(which=INDEX, how=st.sampled_from(["escalate_dispute", "win_dispute", "lose_dispute"]))
    def decide_dispute(self, which: int, how: str) -> None:
        for dispute in self._picked(which, self._of_ours("dispute")):
            self._if_possible(getattr(self.world.sandbox, how), dispute["id"])

    # What reaches us, and when

    @rule(picks=st.lists(INDEX, min_size=1, max_size=4), crash=OTHER_CRASHES, fault=FAULTS)
    def bring_webhooks(self, picks: list[int], crash: Any, fault: Any) -> None:
        """Some webhooks, of now or long ago, in any order, some for the second time; most are never brought."""
        events = self._events()
        self._set(fault)
        with self._crashing(crash):
            for pick in picks:
                for event in self._picked(pick, events):
                    self._if_available(self.world.deliver, event)
        self.world.sandbox.clear_faults()

    @rule(which=INDEX)
    def read(self, which: int) -> None:
        """Somebody retrieves a PaymentIntent with what belongs to it, and is then in no hurry."""
        for intent in self._picked(which, self._intents()):
            self.readings.append(self._reading(intent))

    @precondition(lambda self: self._intents("succeeded"))
    @rule(which=INDEX, refunded=st.booleans(), again=st.booleans())
    def overtake(self, which: int, refunded: bool, again: bool) -> None:
        """One reads, Stripe goes on and another hears of all, and only then the first one settles what he has read."""
        give_back, take_back = ("refund", "fail_refund") if refunded else ("open_dispute", "win_dispute")
        sandbox = self.world.sandbox
        for intent in self._picked(which, self._intents("succeeded")):
            readings = [self._reading(intent)]
            made = self._if_possible(getattr(sandbox, give_back), intent["id"], amount_cents=100)
            readings.append(self._reading(intent))
            if made is not None and again:
                self._if_possible(getattr(sandbox, take_back), made["id"])
            self.world.deliver(*self._events())
            for reading in reversed(readings):
                settle_and_follow(self.world.payments, reading)

    @precondition(lambda self: self.readings)
    @rule(which=INDEX, crash=OTHER_CRASHES)
    def settle_a_reading(self, which: int, crash: Any) -> None:
        """However outdated it is."""
        with self._crashing(crash):
            settle_and_follow(self.world.payments, self.readings[which % len(self.readings)])

    @rule(crash=OTHER_CRASHES, fault=FAULTS)
    def reconcile(self, crash: Any, fault: Any) -> None:
        self._set(fault)
        with self._crashing(crash):
            self.world.process_due_attempts()
        self.world.sandbox.clear_faults()

    @rule(by=ASTRAY)
    def go_astray(self, by: timedelta) -> None:
        """The clock of the machine that works is wrong, or right again."""
        self.world.go_astray(by)

    @rule(by=st.sampled_from([{"seconds": 70}, {"minutes": 20}, {"hours": 1}, {"hours": 9}, {"hours": 26}]))
    def wait(self, by: dict[str, float]) -> None:
        self.world.clock.move(**by)

    @rule()
    def drain(self) -> None:
        """Nothing goes wrong for half a minute: then the ledger is what Stripe holds."""
        self.world.clock.move(seconds=31)
        self.world.process_due_attempts()
        self.world.read_events()
        held_cents = self.world.held_cents(self.org_id)
        assert self.world.balance(self.org_id) == held_cents + self.adjusted_cents

    # What must be so

    @invariant()
    def nobody_is_charged_twice_for_a_wish(self) -> None:
        told = [each.told.payment_intent_id for each in self.wishes if isinstance(each.told, TopUpMade)]
        assert len(told) == len(set(told)), "two wishes were told of one charge"
        untold = {each["id"] for each in self._intents("succeeded")}.difference(told)
        assert len(untold) <= sum(each.told is None for each in self.wishes), (
            "a charge that nobody wished for"
        )

    def teardown(self) -> None:
        """Bring everything to its end, and compare."""
        for intent in self._intents("processing"):
            self.world.sandbox.finish_processing(intent["id"])
        for hours in (1, 25, 26):
            self.world.clock.move(hours=hours)
            self.world.process_due_attempts()
        self.drain()
        self.world.mend_gates()
        assert [each.status for each in self.world.attempts(self.org_id) if each.open] == []
        self.nobody_is_charged_twice_for_a_wish()

    # How

    def _ask(self, wish: Wish, fault: Any, crash: Any, hangs_up: bool) -> None:
        self._set(fault)
        with self._crashing(crash), suppress(ProviderUnavailableError):
            outcome, attempt_id = self._top_up(wish)
            if hangs_up:
                mark_unanswered(self.world.payments, self.org_id, attempt_id)
            else:
                wish.told = outcome
                mark_answered(self.world.payments, self.org_id, attempt_id)
        self.world.sandbox.clear_faults()

    def _top_up(self, wish: Wish) -> Any:
        done = top_up(
            self.world.payments,
            self.org_id,
            amount_cents=wish.amount_cents,
            payment_method_id=wish.method,
            idempotency_key=wish.key,
        )
        return done.outcome, done.attempt_id

    @contextmanager
    def _crashing(self, crash: tuple[CrashPoint, int] | None) -> Iterator[None]:
        """Tear off what runs, where a crash is wanted; the next process comes when the lease of the dead one has run out."""
        with crashing_at(*crash) if crash else nullcontext():
            yield
            return
        self.world.clock.move(seconds=61)

    def _set(self, fault: Any) -> None:
        if fault is not None:
            kind, operation, count = fault
            self.world.sandbox.set_fault(kind, operation=operation, count=count)

    def _waiting(self) -> list[Wish]:
        """What is still asked for: with a key it may be, for ever."""
        now = self._hour()
        return [
            each
            for each in self.wishes
            if not each.told and (each.key or now - each.began_hour < PATIENCE_HOURS)
        ]

    def _hour(self) -> float:
        return self.world.clock().timestamp() / 3600

    def _reading(self, intent: dict[str, Any]) -> IntentSeen:
        """What a look-up of the intent would settle."""
        stripe = self.world.payments.stripe
        seen = stripe.retrieve_intent(intent["id"])
        if seen.status != IntentStatus.SUCCEEDED:
            return IntentSeen(seen)
        return IntentSeen(seen, stripe.refunds_of(seen.id), stripe.disputes_of(seen.id))

    def _intents(self, status: str | None = None) -> list[dict[str, Any]]:
        found = self._of_ours("payment_intent")
        return [each for each in found if status is None or each["status"] == status]

    def _of_ours(self, kind: str) -> list[dict[str, Any]]:
        """The org's objects at Stripe, oldest first."""
        store = self.world.sandbox._store
        return [store.peek(id_) or {} for id_ in store.ids(kind)[self.before[kind] :]]

    def _events(self) -> list[dict[str, Any]]:
        store = self.world.sandbox._store
        return [shown(store.peek(id_)) for id_ in store.ids("event")[self.before["event"] :]]

    @staticmethod
    def _picked(which: int, among: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [among[which % len(among)]] if among else []

    @staticmethod
    def _if_possible(do: Any, *about: Any, **how: Any) -> Any:
        with suppress(StripeError):
            return do(*about, **how)

    @staticmethod
    def _if_available(do: Any, *about: Any) -> None:
        with suppress(ProviderUnavailableError):
            do(*about)

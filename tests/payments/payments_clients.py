"""The steps of the payments walk that clients take: each wishes for charges, and asks until he is told of one."""

from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from metering.payments.errors import PaymentError, ProviderUnavailableError
from metering.payments.outcomes import TopUpMade, TopUpOutcome
from metering.payments.top_ups import ToppedUp, mark_told, top_up
from metering.rules.payments import IntentStatus
from metering.runtime.crashpoints import CrashPoint
from tests.payments.payments_walk import FAULTS, INDEX, PaymentsWalk

PATIENCE_HOURS: Final = 20
"""How long a client without a key repeats a request that got no answer: the contract lets it join for 24 hours."""
TOP_UP_POINTS: Final = [
    CrashPoint.TOP_UP_AFTER_ATTEMPT,
    CrashPoint.CHARGE_BEFORE_SEND,
    CrashPoint.CHARGE_AFTER_SEND,
    CrashPoint.SETTLE_AFTER_WRITE,
    CrashPoint.SETTLE_AFTER_COMMIT,
    CrashPoint.TOP_UP_BEFORE_ANSWER,
]
TOP_UP_CRASHES = st.none() | st.none() | st.tuples(st.sampled_from(TOP_UP_POINTS), st.just(1))


@dataclass
class Wish:
    """A client wants one charge, and asks until it is told of one."""

    amount_cents: int
    method: str
    key: str | None
    began_hour: float
    asked_step: int = 0
    told: TopUpOutcome | None = None
    decided: bool = False
    """Whether he was told how it ended: that his bank still thinks is no end, and whoever asks the same gets this one's."""
    refused: bool = False
    """Whether he was told that nothing was charged, and that to ask again is no use."""
    lost: bool = False
    """Whether a restore has undone what he was told or asked: he isn't heard of again, and may have been charged."""


class Clients(PaymentsWalk):
    """What clients do, and what must be so for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.wishes: list[Wish] = []

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
            wanted = Wish(amount_cents, method, key, self.hour())
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
        challenged=st.booleans(),
        cancelled=st.booleans(),
        fault=FAULTS,
    )
    def lose_and_repeat(
        self, point: CrashPoint, hours: float, challenged: bool, cancelled: bool, fault: Any
    ) -> None:
        """Ask with a key, get no answer, and ask again after a time in which nothing of ours ran.

        Meanwhile somebody may have cancelled it at Stripe.
        """
        number = next(self.keys)  # also in the amount: this one joins nobody's
        method = self.challenged_card if challenged else self.card
        wish = Wish(3_000 + number, method, f"key-{number}", self.hour())
        self.wishes.append(wish)
        self._ask(wish, fault, (point, 1), False)
        if wish.told is None and not wish.refused:
            self.world.clock.move(hours=hours)
            for intent in self.unfinished() if cancelled else []:
                self.world.stripe.v1.payment_intents.cancel(intent["id"])
            self._ask(wish, None, None, False)

    @precondition(lambda self: self._told_with_key())
    @rule(which=INDEX)
    def repeat_told(self, which: int) -> None:
        """Ask again with a key that was answered: the answer is the same, for ever."""
        told = self._told_with_key()
        wish = told[which % len(told)]
        assert self._top_up(wish).outcome == wish.told

    @invariant()
    def nobody_is_charged_twice_for_a_wish(self) -> None:
        told = [
            each.told.payment_intent_id
            for each in self.wishes
            if isinstance(each.told, TopUpMade) and each.decided and not each.lost
        ]
        assert len(told) == len(set(told)), "two wishes were told of one charge"
        untold = {each["id"] for each in self.intents("succeeded", dashboard=False)}.difference(told)
        open_wishes = sum(each.lost or not (each.decided or each.refused) for each in self.wishes)
        assert len(untold) <= open_wishes, "a charge that nobody wished for"

    def forget_since(self, step: int) -> None:
        """A restore has undone what was asked or told after `step`."""
        for each in self.wishes:
            each.lost |= each.asked_step > step

    def _ask(self, wish: Wish, fault: Any, crash: Any, hangs_up: bool) -> None:
        self.set_fault(fault)
        with self.crashing(crash):
            wish.asked_step = self.steps
            try:
                done = self._top_up(wish)
                if isinstance(done.outcome, TopUpMade):
                    assert done.outcome.status != IntentStatus.CANCELED, (
                        "nothing was charged, and it reads as made"
                    )
                if not hangs_up:
                    wish.told, wish.decided = done.outcome, done.decided
                mark_told(self.world.payments, self.org_id, done, heard=not hangs_up)
            except ProviderUnavailableError:
                pass  # it isn't known, or nothing was charged: he may ask again
            except PaymentError:
                wish.refused = True
        self.world.sandbox.clear_faults()

    def _top_up(self, wish: Wish) -> ToppedUp:
        return top_up(
            self.world.payments,
            self.org_id,
            amount_cents=wish.amount_cents,
            payment_method_id=wish.method,
            idempotency_key=wish.key,
        )

    def _waiting(self) -> list[Wish]:
        """What is still asked for: with a key that wasn't answered it may be, for ever."""
        now = self.hour()
        return [
            each
            for each in self.wishes
            if not (each.decided or each.refused or each.lost)
            and ((each.key and each.told is None) or now - each.began_hour < PATIENCE_HOURS)
        ]

    def _told_with_key(self) -> list[Wish]:
        return [each for each in self.wishes if each.key and each.told and not each.lost]

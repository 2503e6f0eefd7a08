"""What all steps of the payments walk share: one org in a world, what Stripe has of it, faults, crashes, time."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from db.operators.log import Actor
from metering.payments.cards import create_setup_intent, set_default_payment_method
from metering.payments.errors import ProviderUnavailableError
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.values import shown
from tests.payments.crashing import crashing_at
from tests.payments.reload_world import ReloadWorld

CREATE: Final = "payment_intents.create"
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
                RequestFault.LOCK_TIMEOUT,
            ]
        ),
        st.sampled_from([CREATE, "payment_intents.*", "*"]),
        st.integers(1, 5),
    )
    | st.tuples(st.just(RequestFault.CARD_ERROR), st.just(CREATE), st.integers(1, 2))
)
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
OPERATOR: Final = Actor("ann", "ann")
INDEX = st.integers(0, 10**6)
"""Picks one of however many there are."""


class PaymentsWalk(RuleBasedStateMachine):
    """The org of one example. `world` and `org_ids` are set by a subclass."""

    world: ClassVar[ReloadWorld]
    org_ids: ClassVar[Iterator[int]]
    taken: ClassVar[int] = 0
    """How many steps all examples have taken."""

    def __init__(self) -> None:
        super().__init__()
        self.org_id = next(self.org_ids)
        self.world.go_astray(timedelta())
        self.keys = itertools.count(1)
        self.steps = 0
        """How many steps there have been that a restore may undo."""
        self.dashboard: set[str] = set()
        """PaymentIntents that somebody has made in the dashboard."""
        self.edited: dict[str, dict[str, str]] = {}
        """The metadata of PaymentIntents before somebody edited them."""
        store = self.world.sandbox._store
        self.before = {
            kind: len(store.ids(kind))
            for kind in ("event", "payment_intent", "refund", "dispute", "customer")
        }

    @invariant()
    def count(self) -> None:
        """Each step is followed by this."""
        type(self).taken += 1

    def save_cards_anew(self) -> None:
        """As a customer does who has none: he is asked for one good card and one that wants 3DS, the first is the default."""
        for card in ("pm_card_threeDSecure2Required", "pm_card_visa"):
            made = create_setup_intent(self.world.payments, self.org_id)
            method = self.world.sandbox.confirm_setup(made.setup_intent_id, card=card)
            set_default_payment_method(self.world.payments, self.org_id, method)
            if card == "pm_card_visa":
                self.card = method
            else:
                self.challenged_card = method

    def hour(self) -> float:
        return self.world.clock().timestamp() / 3600

    @contextmanager
    def crashing(self, crash: tuple[CrashPoint, int] | None) -> Iterator[None]:
        """Tear off what runs, where a crash is wanted; the next process comes when the lease of the dead one has run out."""
        self.steps += 1
        with crashing_at(*crash) if crash else nullcontext():
            yield
            return
        self.world.clock.move(seconds=61)

    def set_fault(self, fault: Any) -> None:
        if fault is not None:
            kind, operation, count = fault
            self.world.sandbox.set_fault(kind, operation=operation, count=count)

    def intents(self, status: str | None = None, *, dashboard: bool = True) -> list[dict[str, Any]]:
        """The org's PaymentIntents at Stripe, oldest first."""
        return [
            each
            for each in self.of_ours("payment_intent")
            if (status is None or each["status"] == status)
            and (dashboard or each["id"] not in self.dashboard)
        ]

    def unfinished(self) -> list[dict[str, Any]]:
        """Those that wait for the cardholder or for another card, and can be cancelled."""
        return self.intents("requires_action") + self.intents("requires_payment_method")

    def of_ours(self, kind: str) -> list[dict[str, Any]]:
        """The org's objects at Stripe, oldest first."""
        store = self.world.sandbox._store
        return [store.peek(id_) or {} for id_ in store.ids(kind)[self.before[kind] :]]

    def events(self) -> list[dict[str, Any]]:
        store = self.world.sandbox._store
        return [shown(store.peek(id_)) for id_ in store.ids("event")[self.before["event"] :]]

    def held_cents(self) -> int:
        """What Stripe holds for the org, by all customers that it ever had."""
        holdings = self.world.sandbox.holdings()
        mine = {each["id"] for each in self.of_ours("customer")}
        return sum(holding.net_cents for customer, holding in holdings.items() if customer in mine)

    @staticmethod
    def picked(which: int, among: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [among[which % len(among)]] if among else []

    @staticmethod
    def if_possible(do: Any, *about: Any, **how: Any) -> Any:
        with suppress(StripeError):
            return do(*about, **how)

    @staticmethod
    def if_available(do: Any, *about: Any) -> None:
        with suppress(ProviderUnavailableError):
            do(*about)

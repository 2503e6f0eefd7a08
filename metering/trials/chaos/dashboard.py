"""What people do in Stripe's dashboard during a run: pay, edit, delete; and what operators of the product then have to do."""

import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from http.client import HTTPException
from subprocess import TimeoutExpired
from typing import Any, Final

import msgspec
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from metering.payments.stripe_api import StripeApi
from metering.payments.stripe_failures import StripeFailure
from metering.rules.payments import Intent, IntentStatus
from metering.runtime.clock import Clock
from metering.sandbox.stripe.remote import ControlError, control
from metering.trials.chaos.operators import CommandFailedError, Operators

FIRST_CENTS: Final = 300
"""What the first payment by hand is of; each further one is of a cent more, so that it is told from all others."""
EDITED_AT_ONCE: Final = 3
RECENT: Final = timedelta(minutes=2)
CURRENCIES: Final = (("usd", 1.0), ("eur", 0.85), ("gbp", 0.74))
LIMIT_S: Final = 90.0
"""How long what can't be done, because a server is away for another fault, is tried again."""

_CUSTOMERS: Final = text(
    "SELECT org_id, stripe_customer_id FROM accounts WHERE stripe_customer_id IS NOT NULL ORDER BY org_id"
)
_CREDITED: Final = text("SELECT source_key FROM transactions WHERE kind = 'credit'")
_AWAY: Final = (
    *(OSError, HTTPException, msgspec.DecodeError, ControlError, SQLAlchemyError, StripeFailure),
    *(CommandFailedError, TimeoutExpired),
)


class Dashboard:
    """The dashboard, and a record of what was done there."""

    def __init__(
        self, stripe_url: str, stripe: StripeApi, engine: Engine, clock: Clock, operators: Operators
    ) -> None:
        self._url = stripe_url
        self._stripe = stripe
        self._engine = engine
        self._clock = clock
        self._operators = operators
        self._lock = threading.Lock()
        self._booking = threading.Lock()
        self._paid: dict[str, int] = {}
        """The org of each payment that was made by hand."""
        self._payments = 0
        self._edited: dict[str, dict[str, str]] = {}
        """What the metadata were of each payment that were edited."""

    def pay(self, seed: int) -> None:
        """Take a payment from an org's customer; the operators book it."""
        with self._lock:
            cents = FIRST_CENTS + self._payments
            self._payments += 1
        randomness = random.Random(seed)  # noqa: S311 - to be repeatable, not secret

        def pay() -> None:
            customers = self._customers()
            intent_id, customer_id = self._paid_before(cents)  # by an earlier try whose answer was lost
            if intent_id is None:
                customer_id = randomness.choice(list(customers))
                made = control(self._url, "pay_in_dashboard", customer=customer_id, amount_cents=cents)
                intent_id = str(made["id"])
            with self._lock:
                self._paid[intent_id] = customers[customer_id or ""]

        _insist(pay)
        self.book_all()

    def book_all(self) -> None:
        """Have booked whatever was paid by hand and isn't; so it has to be again after a restore."""

        def book_all() -> None:
            with self._engine.connect() as connection:
                credited = set(connection.scalars(_CREDITED))
            with self._lock:
                left = {intent: org_id for intent, org_id in self._paid.items() if intent not in credited}
            for intent_id, org_id in left.items():
                self._operators.book(org_id, intent_id)

        with self._booking:
            _insist(book_all)

    def delete_customer(self, seed: int) -> None:
        """Delete an org's customer, with his cards."""
        randomness = random.Random(seed)  # noqa: S311

        def delete() -> None:
            customer_id = randomness.choice(list(self._customers()))
            control(self._url, "delete_customer", customer=customer_id)

        _insist(delete)

    def edit_metadata(self, seed: int) -> None:
        """Let the newest payments name others' attempts, other orgs or nothing."""
        randomness = random.Random(seed)  # noqa: S311

        def edit() -> None:
            newest = list(self._stripe.list_intents(since=self._clock() - RECENT))[: 4 * EDITED_AT_ONCE]
            ours = [each for each in newest if each.attempt_id is not None]
            for intent in randomness.sample(ours, min(EDITED_AT_ONCE, len(ours))):
                self._edit(intent, randomness.choice(ours), randomness.randrange(3))

        _insist(edit)

    def undo_edits(self) -> None:
        """Put all metadata back, as the audit asks for it."""

        def undo() -> None:
            for intent_id, before in self._edited.items():
                control(self._url, "edit_metadata", payment_intent=intent_id, metadata=before)

        _insist(undo)

    def settle(self, seed: int) -> None:
        """Let the account settle in some currency at some rate."""
        randomness = random.Random(seed)  # noqa: S311
        currency, rate = randomness.choice(CURRENCIES)
        fee_apart = randomness.random() < 0.5  # noqa: PLR2004
        _insist(
            lambda: control(
                self._url, "set_settlement", currency=currency, exchange_rate=rate, fee_apart=fee_apart
            )
        )

    def _edit(self, intent: Intent, other: Intent, how: int) -> None:
        before = {
            "org_id": str(intent.org_id),
            "attempt_id": str(intent.attempt_id),
            "attempt_kind": "" if intent.kind is None else intent.kind.value,
        }
        self._edited.setdefault(intent.id, before)
        metadata = [
            {"attempt_id": str(other.attempt_id)},
            {"org_id": str(other.org_id), "attempt_id": str(other.attempt_id)},
            {"org_id": "", "attempt_id": "", "attempt_kind": ""},
        ][how]
        control(self._url, "edit_metadata", payment_intent=intent.id, metadata=metadata)

    def _customers(self) -> dict[str, int]:
        """The org of each customer that one has at present."""
        with self._engine.connect() as connection:
            return {row.stripe_customer_id: row.org_id for row in connection.execute(_CUSTOMERS)}

    def _paid_before(self, cents: int) -> tuple[str | None, str | None]:
        """A payment of just so much, and its customer; a declined one is none."""
        for each in self._stripe.list_intents(since=self._clock() - RECENT):
            if (each.amount_cents, each.status) == (cents, IntentStatus.SUCCEEDED):
                return each.id, each.customer_id
        return None, None


def _insist(work: Callable[[], Any]) -> None:
    """Do it, and try again for a while where something is away for another fault, or was done by somebody meanwhile."""
    deadline_s = time.monotonic() + LIMIT_S
    while True:
        try:
            work()
        except _AWAY:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)
        else:
            return

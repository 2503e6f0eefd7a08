"""Everything said to Stripe, through its own SDK: values in, values out, and four kinds of failure that mean different things."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe

from db.attempts.attempts import Attempt
from db.payments.stripe_events import EventRef
from metering.payments.parsing import read_card, read_dispute, read_intent, read_refund
from metering.payments.stripe_failures import StripeRefused
from metering.payments.stripe_requests import TIMELY, HttpClient, ask, each_of, is_replayed
from metering.rules.lookup_schedule import CLOCK_SKEW
from metering.rules.payments import CURRENCY, AttemptKind, Dispute, Intent, IntentStatus, Missing, Refund

API_VERSION: Final = "2026-10-28.endive"
"""Pinned: Stripe answers in the shapes that were tested, whatever the account's default is."""
CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 15.0
MAX_NETWORK_RETRIES: Final = 1
"""The SDK repeats lost connections, 409 and 5xx by itself, with the same key. Together they take less than a WORK_LEASE."""
PAGE: Final = 100
REFUND_MARK: Final = "metering_refund"
"""The name of a refund's metadata that tells which operator's key has made it."""
EVENT_DELAY: Final = timedelta(minutes=1)
"""How much later than an object the event of its making may be dated: that of a charge when the bank has answered."""


@dataclass(frozen=True, slots=True)
class SavedCard:
    """A payment method at Stripe. `identity` is the same for the same card (`card_identity`)."""

    id: str
    customer_id: str | None
    identity: str | None


@dataclass(frozen=True, slots=True)
class StripeEventSeen:
    """An event from Stripe's list, its object as it was then."""

    id: str
    type: str
    created_at: datetime
    livemode: bool
    data: dict[str, Any]
    """`object`, and `previous_attributes` where something changed."""

    @property
    def ref(self) -> EventRef:
        """Which event it is."""
        return EventRef(self.id, self.type, self.created_at)


@dataclass(frozen=True, slots=True)
class EventsSeen:
    """What stands in Stripe's list of events. `at`: when Stripe told so, by its own clock; None where it didn't say."""

    events: list[StripeEventSeen]
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Search:
    """What a search for a charge came to. `at`: when Stripe answered, by its own clock; None where it didn't say."""

    intent: Intent | None
    at: datetime | None


class StripeApi:
    """Stripe, asked with one key. Made once; may be used by any number of threads. Methods raise StripeFailure's subclasses."""

    def __init__(self, client: "stripe.StripeClient", *, livemode: bool) -> None:
        self._v1 = client.v1
        self.livemode = livemode

    def create_customer(self, org_id: int, name: str, *, key: str) -> str:
        """Make an org's customer; give its id. The same key makes the same one (for 24 h)."""
        params: Any = {"name": name, "metadata": {"org_id": str(org_id)}}
        made = ask("customers.create", lambda: self._v1.customers.create(params, {"idempotency_key": key}))
        return str(made["id"])

    def key_of_customer(self, customer_id: str, *, before: datetime) -> str | None:
        """The idempotency key with which a customer was made, `before` then; None where Stripe no longer tells.

        From the event of his making, which nobody can edit; Stripe keeps it for 30 days.
        """
        try:
            found = ask("customers.retrieve", lambda: self._v1.customers.retrieve(customer_id))
        except StripeRefused:
            return None
        made_at = found.get("created")  # of a deleted one Stripe doesn't tell it
        created: Any = {"lte": int(before.timestamp())} if made_at is None else _when_made(made_at)
        return self._key_of("customer.created", customer_id, created)

    def _key_of(self, type_: str, object_id: str, created: dict[str, int]) -> str | None:
        """The idempotency key in the event of an object's making, which is of this time."""
        params: Any = {"type": type_, "created": created, "limit": PAGE}
        for each in each_of("events.list", lambda: self._v1.events.list(params)):
            if each["data"]["object"]["id"] == object_id:
                key = (each.get("request") or {}).get("idempotency_key")
                return key if isinstance(key, str) else None
        return None

    def charge(self, attempt: Attempt, *, timely: Callable[[], bool] = lambda: True) -> Intent:
        """Make and confirm an attempt's charge, with its id as the key; give the PaymentIntent, a declined one too.

        Everything that is sent comes from the attempt's row, so that each repeat is the same request. `timely` is asked before
        each try, the SDK's own repeat included; where it says no nothing is sent any more, and the outcome is unknown.
        """
        params: Any = {
            "amount": attempt.amount_cents,
            "currency": CURRENCY,
            "customer": attempt.customer_id,
            "payment_method": attempt.payment_method_id,
            # Excludes `automatic_payment_methods`, and so `allow_redirects`, by which a return_url could be spared:
            # docs.stripe.com/changelog/dahlia/2026-07-29/allowed-payment-method-types-parameter
            "allowed_payment_method_types": ["card"],
            "confirm": True,
            "description": "Auto-reload" if attempt.kind is AttemptKind.AUTO_RELOAD else "Top-up",
            "metadata": {
                "org_id": str(attempt.org_id),
                "attempt_id": str(attempt.id),
                "attempt_kind": attempt.kind.value,
            },
        }
        # Intents of endive have dynamic payment methods, and whoever confirms those says where the customer comes back to, unless
        # he isn't there: docs.stripe.com/changelog/2023-08-16/automatic-payment-methods. Stripe.js shows the bank's page inside
        # the customer's (use_stripe_sdk); a bank that wants the whole window sends him back to the return_url.
        if attempt.kind is AttemptKind.AUTO_RELOAD:
            params["off_session"] = True
        else:
            params["use_stripe_sdk"] = True
            if attempt.return_url is not None:  # rows from before the column are repeated as they were sent
                params["return_url"] = attempt.return_url
        options: Any = {"idempotency_key": str(attempt.id)}
        asked = TIMELY.set(timely)
        answers: list[Any] = []
        try:
            made = ask(
                "payment_intents.create",
                lambda: self._v1.payment_intents.create(params, options),
                answers=answers,
            )
        finally:
            TIMELY.reset(asked)
        intent = read_intent(made)
        # What the key was answered first is no longer so, perhaps: it may have succeeded, or been cancelled.
        ended = intent.status in {IntentStatus.SUCCEEDED, IntentStatus.CANCELED}
        outdated = any(map(is_replayed, answers)) and not ended
        return self.retrieve_intent(intent.id) if outdated else intent

    def retrieve_intent(self, intent_id: str) -> Intent:
        """A PaymentIntent as it stands."""
        return _intent("payment_intents.retrieve", lambda: self._v1.payment_intents.retrieve(intent_id))

    def cancel_intent(self, intent_id: str) -> Intent:
        """Cancel a PaymentIntent, and give what it then is: one that has ended, or can't be cancelled now, stays as it is."""
        try:
            return _intent("payment_intents.cancel", lambda: self._v1.payment_intents.cancel(intent_id))
        except StripeRefused:
            return self.retrieve_intent(intent_id)

    def key_of_intent(self, intent: Intent) -> str | None:
        """The idempotency key with which a PaymentIntent was made; None where Stripe no longer tells, after 30 days."""
        made_at = int(intent.created_at.timestamp())
        return self._key_of("payment_intent.created", intent.id, _when_made(made_at))

    def find_intent(self, attempt: Attempt, *, since: datetime) -> Search:
        """Look for an attempt's PaymentIntent among its customer's, made at `since` or later; there may be none (yet).

        By the key with which it was made, which Stripe keeps in the event, and nobody edits; by our mark in its metadata only
        where Stripe no longer tells the key.

        Payments outlive a customer who was deleted: then all of that time are looked through. With another account's key, which
        has never had him, nothing can be known: that raises StripeRefused.
        """
        since -= CLOCK_SKEW
        times: list[datetime | None] = []
        try:
            intents = self.list_intents(since=since, customer_id=attempt.customer_id, times=times)
            return Search(self._of_attempt(intents, attempt), times[0])
        except StripeRefused as refused:
            if refused.missing is not Missing.CUSTOMER or not self.is_deleted(attempt.customer_id):
                raise
        found = self._of_attempt(self.list_intents(since=since, times=times), attempt)
        return Search(found, times[0])

    def _of_attempt(self, intents: Iterable[Intent], attempt: Attempt) -> Intent | None:
        """The one of them that is the attempt's."""
        alike = [
            each
            for each in intents
            if (each.customer_id, each.amount_cents) == (attempt.customer_id, attempt.amount_cents)
        ]
        alike.sort(key=lambda each: each.attempt_id != attempt.id)  # those that name it come first
        named: Intent | None = None
        for intent in alike:
            key = self.key_of_intent(intent)
            if key == str(attempt.id):
                return intent
            if key is None and intent.attempt_id == attempt.id:
                named = named or intent
        return named

    def is_deleted(self, customer_id: str) -> bool:
        """Whether this account had the customer, and has him no more. Raises StripeRefused where it never had him."""
        found = ask("customers.retrieve", lambda: self._v1.customers.retrieve(customer_id))
        return bool(found.get("deleted"))

    def list_intents(
        self, *, since: datetime, customer_id: str | None = None, times: list[datetime | None] | None = None
    ) -> Iterator[Intent]:
        """All PaymentIntents made at `since` or later, newest first; of one customer, or of all.

        When Stripe told of each page, by its own clock, is added to `times`.
        """
        params: Any = {"created": {"gte": int(since.timestamp())}, "limit": PAGE}
        if customer_id is not None:
            params["customer"] = customer_id
        for each in each_of("payment_intents.list", lambda: self._v1.payment_intents.list(params), times):
            yield read_intent(each)

    def refunds_of(self, intent_id: str) -> tuple[Refund, ...]:
        """A PaymentIntent's refunds."""
        params: Any = {"payment_intent": intent_id, "limit": PAGE}
        return tuple(
            read_refund(each) for each in each_of("refunds.list", lambda: self._v1.refunds.list(params))
        )

    def find_refund(self, intent_id: str, mark: str) -> Refund | None:
        """A PaymentIntent's refund that bears our mark, as it stands; None if there is none."""
        params: Any = {"payment_intent": intent_id, "limit": PAGE}
        for each in each_of("refunds.list", lambda: self._v1.refunds.list(params)):
            if (each.get("metadata") or {}).get(REFUND_MARK) == mark:
                return read_refund(each)
        return None

    def create_refund(self, intent_id: str, *, amount_cents: int | None, mark: str) -> Refund:
        """Refund a PaymentIntent, all that is left of it unless told how much, with `mark` as key and as mark."""
        params: Any = {"payment_intent": intent_id, "metadata": {REFUND_MARK: mark}}
        if amount_cents is not None:
            params["amount"] = amount_cents
        options: Any = {"idempotency_key": mark}
        return read_refund(ask("refunds.create", lambda: self._v1.refunds.create(params, options)))

    def disputes_of(self, intent_id: str) -> tuple[Dispute, ...]:
        """A PaymentIntent's disputes."""
        params: Any = {"payment_intent": intent_id, "limit": PAGE}
        return tuple(
            read_dispute(each) for each in each_of("disputes.list", lambda: self._v1.disputes.list(params))
        )

    def list_refunds(self, *, since: datetime) -> Iterator[tuple[str | None, Refund]]:
        """All refunds made at `since` or later, each with its PaymentIntent's id."""
        params: Any = {"created": {"gte": int(since.timestamp())}, "limit": PAGE}
        for each in each_of("refunds.list", lambda: self._v1.refunds.list(params)):
            yield each.get("payment_intent"), read_refund(each)

    def list_disputes(self, *, since: datetime) -> Iterator[tuple[str | None, Dispute]]:
        """All disputes opened at `since` or later, each with its PaymentIntent's id."""
        params: Any = {"created": {"gte": int(since.timestamp())}, "limit": PAGE}
        for each in each_of("disputes.list", lambda: self._v1.disputes.list(params)):
            yield each.get("payment_intent"), read_dispute(each)

    def create_setup_intent(self, customer_id: str) -> tuple[str, str]:
        """Make a SetupIntent for saving a card that is to be charged without the customer; give id and client secret."""
        params: Any = {
            "customer": customer_id,
            "usage": "off_session",
            "allowed_payment_method_types": ["card"],
        }
        made = ask("setup_intents.create", lambda: self._v1.setup_intents.create(params))
        return str(made["id"]), str(made["client_secret"])

    def retrieve_card(self, payment_method_id: str) -> SavedCard:
        """A payment method."""
        found = ask("payment_methods.retrieve", lambda: self._v1.payment_methods.retrieve(payment_method_id))
        card = found.get("card") or {}
        return SavedCard(str(found["id"]), found.get("customer"), read_card(card))

    def set_default_card(self, customer_id: str, payment_method_id: str) -> None:
        """Make a payment method the default one of the customer's invoices, so that Stripe's own pages show the same."""
        params: Any = {"invoice_settings": {"default_payment_method": payment_method_id}}
        ask("customers.update", lambda: self._v1.customers.update(customer_id, params))

    def events_since(self, since: datetime, types: Sequence[str]) -> EventsSeen:
        """Events of these types, of `since` and later, newest first; Stripe keeps them for 30 days."""
        created: Any = {"gte": int(since.timestamp())}
        params: Any = {"created": created, "types": list(types), "limit": PAGE}
        times: list[datetime | None] = []
        events = [
            StripeEventSeen(
                each["id"],
                each["type"],
                datetime.fromtimestamp(each["created"], UTC),
                bool(each["livemode"]),
                each["data"],
            )
            for each in each_of("events.list", lambda: self._v1.events.list(params), times)
        ]
        return EventsSeen(events, times[0])


def _when_made(made_at: int) -> dict[str, int]:
    """When the event of the making of an object of this second is dated."""
    return {"gte": made_at, "lte": made_at + int(EVENT_DELAY.total_seconds())}


def connect_stripe(api_key: str, *, base_url: str | None = None) -> StripeApi:
    """Stripe, or another server that speaks like it at `base_url`, which takes test keys only. Nothing connects yet."""
    # ValueError rather than a setting's error: the settings have refused it already.
    if base_url is not None and not api_key.startswith("sk_test_"):
        raise ValueError("another server than Stripe's gets no other keys than sk_test_...")
    http_client = HttpClient(timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
    client = stripe.StripeClient(
        api_key,
        stripe_version=API_VERSION,
        base_addresses={"api": base_url} if base_url else {},
        max_network_retries=MAX_NETWORK_RETRIES,
        http_client=http_client,
    )
    return StripeApi(client, livemode=api_key.split("_")[1:2] == ["live"])


def _intent(operation: str, call: Callable[[], Any]) -> Intent:
    """Ask for something that gives a PaymentIntent; a card's error carries it inside."""
    return read_intent(ask(operation, call))

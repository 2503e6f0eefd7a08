"""What no API does: what customers do in their browsers, banks in their back rooms, and operators to a network.

The same controls are methods of a `StripeSandbox` and, for other processes, `POST /_sandbox/<name>` (remote.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from random import Random

from metering.sandbox.stripe import disputes, payment_methods, refunds, setup_intents
from metering.sandbox.stripe.answering import Answering, RequestMade
from metering.sandbox.stripe.api_keys import ApiKeys
from metering.sandbox.stripe.charges import successful_charge
from metering.sandbox.stripe.confirmations import authenticate, finish_processing
from metering.sandbox.stripe.errors import InvalidRequestError
from metering.sandbox.stripe.faults import Chance, Fault, Faults, RequestFault, WebhookFault
from metering.sandbox.stripe.holdings import Holding, holdings
from metering.sandbox.stripe.settlement import Settlement
from metering.sandbox.stripe.store import Store, Work
from metering.sandbox.stripe.values import PRIVATE, Json, shown
from metering.sandbox.stripe.webhooks import Target, Webhooks


@dataclass(frozen=True, slots=True)
class Totals:
    """What has happened since the sandbox was started or reset."""

    asked: Mapping[str, int]
    """Requests that came, by operation."""
    executed: Mapping[str, int]
    """Those of them that were executed."""
    faults_met: Mapping[str, int]
    """Faults that requests and webhooks met, by kind."""
    charges: int
    """Charges that took money, ever."""
    received_cents: int
    refunded_cents: int
    disputed_cents: int
    net_cents: int
    """What Stripe holds, fees left aside."""
    webhooks_sent: int
    webhooks_waiting: int


class Controls:
    """The controls. Each that names an object raises StripeError where there is none, or its state doesn't allow it."""

    def __init__(
        self,
        store: Store,
        api_keys: ApiKeys,
        answering: Answering,
        webhooks: Webhooks,
        request_faults: Faults[RequestFault],
        webhook_faults: Faults[WebhookFault],
    ) -> None:
        self._store = store
        self._api_keys = api_keys
        self._answering = answering
        self._webhooks = webhooks
        self._request_faults = request_faults
        self._webhook_faults = webhook_faults

    def authenticate(self, payment_intent: str, *, succeeds: bool = True) -> Json:
        """The customer answers a 3DS challenge, or fails to. Returns the PaymentIntent, declined or not."""
        with self._store.work() as work:
            return _shown(authenticate(work, payment_intent, succeeds=succeeds))

    def confirm_setup(
        self, setup_intent: str, *, card: str = "pm_card_visa", authenticates: bool = True
    ) -> str:
        """The customer enters a test card (a number or `pm_card_...`) for a SetupIntent, and answers a challenge if there is one.

        Returns the id of the payment method. Raises StripeError if the card isn't saved.
        """
        number = card.replace(" ", "").isdigit()
        data = {"number": card} if number else {"token": card}
        params = {"payment_method_data": {"type": "card", "card": data}, "return_url": "https://example.com"}
        with self._store.work() as work:
            intent = setup_intents.confirm(work, params, setup_intent)
            if intent["status"] == "requires_action":
                intent = setup_intents.authenticate_setup(work, setup_intent, succeeds=authenticates)
        if intent["status"] != "succeeded":
            error = intent["last_setup_error"]
            raise InvalidRequestError(error["message"], code=error["code"])
        return str(intent["payment_method"])

    def save_card(self, customer: str, *, card: str = "pm_card_visa") -> str:
        """A customer saves a test card for off-session use: a SetupIntent from its making to its success in one step."""
        with self._store.work() as work:
            intent = setup_intents.create(work, {"customer": customer, "usage": "off_session"})
        return self.confirm_setup(intent["id"], card=card)

    def fail_card(self, payment_method: str, *, decline_code: str = "generic_decline") -> None:
        """The bank declines every charge of this payment method from now on, for this reason."""
        self._set_decline(payment_method, decline_code)

    def mend_card(self, payment_method: str) -> None:
        """The bank takes charges of this payment method again, as far as the card itself does."""
        self._set_decline(payment_method, None)

    def slow_card(self, payment_method: str, *, slow: bool = True) -> None:
        """The bank takes its time with this payment method: payments stay `processing` until `finish_processing`."""
        with self._store.work() as work:
            work.edit(_method(work, payment_method))[PRIVATE]["slow"] = slow

    def finish_processing(self, payment_intent: str, *, succeeds: bool = True) -> Json:
        """The bank of a slow card decides. Returns the PaymentIntent, declined or not."""
        with self._store.work() as work:
            return _shown(finish_processing(work, payment_intent, succeeds=succeeds))

    def detach(self, payment_method: str) -> Json:
        """The payment method is taken from its customer, in the dashboard."""
        with self._store.work() as work:
            return _shown(payment_methods.detach(work, {}, payment_method))

    def refund(self, payment_intent: str, *, amount_cents: int | None = None) -> Json:
        """Somebody refunds a payment, or a part of it, in the dashboard."""
        amount = {} if amount_cents is None else {"amount": amount_cents}
        with self._store.work() as work:
            return _shown(refunds.create(work, {"payment_intent": payment_intent, **amount}))

    def settle_refund(self, refund: str) -> Json:
        """A pending refund (card `pm_card_pendingRefund`) arrives."""
        with self._store.work() as work:
            return _shown(refunds.settle_refund(work, work.find(refund, "refund", "refund")))

    def fail_refund(self, refund: str, *, reason: str = "lost_or_stolen_card") -> Json:
        """The bank can't pay a refund out: the money comes back."""
        with self._store.work() as work:
            return _shown(refunds.fail_refund(work, work.find(refund, "refund", "refund"), reason))

    def open_dispute(
        self,
        payment_intent: str,
        *,
        amount_cents: int | None = None,
        inquiry: bool = False,
        reason: str = "fraudulent",
        currency: str | None = None,
    ) -> Json:
        """The cardholder disputes a payment, or a part of it; an inquiry takes no money yet.

        `currency` is the dispute's own, where it isn't the charge's; `amount_cents` is in it.
        """
        with self._store.work() as work:
            charge = successful_charge(
                work, work.find(payment_intent, "payment_intent", "payment_intent")["id"]
            )
            if charge is None:
                raise InvalidRequestError(f"{payment_intent} has taken no money.")
            return _shown(
                disputes.open_dispute(
                    work, charge, amount=amount_cents, reason=reason, inquiry=inquiry, currency=currency
                )
            )

    def escalate_dispute(self, dispute: str) -> Json:
        """An inquiry becomes a real dispute, and takes the money."""
        with self._store.work() as work:
            return _shown(disputes.escalate(work, work.find(dispute, "dispute", "dispute")))

    def win_dispute(self, dispute: str) -> Json:
        """The bank decides for us: the money comes back. An inquiry is just closed."""
        with self._store.work() as work:
            return _shown(disputes.close_dispute(work, work.find(dispute, "dispute", "dispute"), won=True))

    def lose_dispute(self, dispute: str) -> Json:
        """The bank decides against us. An inquiry is just closed."""
        with self._store.work() as work:
            return _shown(disputes.close_dispute(work, work.find(dispute, "dispute", "dispute"), won=False))

    def set_settlement(
        self, currency: str = "usd", *, exchange_rate: float = 1.0, fee_apart: bool = False
    ) -> None:
        """The account settles in this currency from now on: its balance transactions are in it, at this rate.

        With `fee_apart` a dispute's fee is a balance transaction of its own.
        """
        self._store.settlement = Settlement(currency, Decimal(str(exchange_rate)), fee_apart)

    def resend(self, event: str) -> None:
        """Send an event's webhook once more, delivered or not."""
        with self._store.work() as work:
            work.find(event, "event", "event")
        self._webhooks.resend(event)

    def rotate_api_key(self, *, keep_old: bool = False) -> str:
        """A new API key, which is returned; the old ones get 401 from now on, unless they are kept."""
        return self._api_keys.rotate(keep_old=keep_old)

    def set_webhook(self, url: str | None, *, secrets: Sequence[str] = ()) -> None:
        """Where webhooks go, signed by each of `secrets`; None: nowhere. Raises ValueError for what is no address."""
        self._webhooks.set_target(None if url is None else Target(url, tuple(secrets)))

    def set_fault(
        self,
        kind: RequestFault,
        *,
        operation: str = "*",
        count: int | None = 1,
        seconds: float = 0.0,
        for_s: int | None = None,
    ) -> None:
        """Let the next `count` requests (None: all) to operations such as `payment_intents.create`, `refunds.*` meet a fault.

        `seconds` is how long a hang takes; `for_s` ends the fault after so many seconds of the sandbox's clock.
        """
        until = None if for_s is None else self._store.now() + for_s
        self._request_faults.add(Fault(kind, operation, count, seconds, until))

    def set_webhook_fault(
        self,
        kind: WebhookFault,
        *,
        event_type: str = "*",
        count: int | None = 1,
        seconds: float = 0.05,
        for_s: int | None = None,
    ) -> None:
        """Let the next `count` webhooks (None: all) of types such as `payment_intent.*` meet a fault."""
        until = None if for_s is None else self._store.now() + for_s
        self._webhook_faults.add(Fault(kind, event_type, count, seconds, until))

    def set_chaos(
        self,
        seed: int,
        *,
        requests: Mapping[RequestFault, float] | None = None,
        webhooks: Mapping[WebhookFault, float] | None = None,
        operation: str = "*",
        event_type: str = "*",
        seconds: float = 0.1,
    ) -> None:
        """Let faults happen by chance, each kind with its probability; hangs and delays take up to `seconds`."""
        random = Random(seed)  # noqa: S311 - it wants to be repeatable, not secret
        self._request_faults.by_chance(Chance(requests, operation, seconds, random) if requests else None)
        random = Random(seed)  # noqa: S311 - one of their own: they are drawn by other threads
        self._webhook_faults.by_chance(Chance(webhooks, event_type, seconds, random) if webhooks else None)

    def set_latency(self, seconds: float) -> None:
        """Let every request take at least so long."""
        self._answering.latency_s = seconds

    def clear_faults(self) -> None:
        """Let nothing go wrong any more, and nothing be slow."""
        self._request_faults.clear()
        self._webhook_faults.clear()
        self._answering.latency_s = 0.0

    def faults_left(self) -> int:
        """How many of the faults that are counted nobody has met yet."""
        return self._request_faults.left() + self._webhook_faults.left()

    def holdings(self) -> Mapping[str, Holding]:
        """By customer, what Stripe says it holds."""
        with self._store.work() as work:
            return holdings(work)

    def totals(self) -> Totals:
        """What has happened."""
        with self._store.work() as work:
            held = holdings(work).values()
            charges = sum(each["paid"] for each in work.newest("charge"))
        met = [*self._request_faults.met.items(), *self._webhook_faults.met.items()]
        return Totals(
            asked=dict(self._answering.asked),
            executed=dict(self._answering.executed),
            faults_met={kind.value: count for kind, count in met},
            charges=charges,
            received_cents=sum(each.received_cents for each in held),
            refunded_cents=sum(each.refunded_cents for each in held),
            disputed_cents=sum(each.disputed_cents for each in held),
            net_cents=sum(each.net_cents for each in held),
            webhooks_sent=self._webhooks.sent,
            webhooks_waiting=self._webhooks.waiting(),
        )

    def requests(self, operation: str = "*") -> list[RequestMade]:
        """The latest requests, oldest first, to operations such as `payment_intents.*`: what was asked, whatever became of it."""
        return [made for made in self._answering.made if fnmatchcase(made.operation, operation)]

    def wait_delivered(self, limit_s: float = 10.0) -> bool:
        """Wait until no webhook is left to send; False if that takes longer."""
        return self._webhooks.wait_delivered(limit_s)

    def reset(self) -> None:
        """Forget all objects, keys, faults and counts, as if it were new; API keys and the webhook's address stay."""
        self.clear_faults()
        self._webhooks.forget()
        self._store.clear()
        self._webhooks.sent = 0
        for counter in (self._answering.asked, self._answering.executed, self._answering.made):
            counter.clear()
        self._request_faults.met.clear()
        self._webhook_faults.met.clear()

    def _set_decline(self, payment_method: str, decline_code: str | None) -> None:
        with self._store.work() as work:
            method = work.edit(_method(work, payment_method))
            method[PRIVATE]["decline"] = decline_code


def _method(work: Work, payment_method: str) -> Json:
    return work.find(payment_method, "payment_method", "payment_method")


def _shown(value: Json) -> Json:
    result: Json = shown(value)
    return result

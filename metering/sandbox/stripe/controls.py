"""What no API does: what customers do in their browsers, banks in their back rooms, and operators to a network.

The same controls are methods of a `StripeSandbox` and, for other processes, `POST /_sandbox/<name>` (remote.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random

from metering.sandbox.stripe.accounts import find_account, new_account
from metering.sandbox.stripe.answering import Answering, RequestMade
from metering.sandbox.stripe.api_keys import ApiKeys
from metering.sandbox.stripe.bank_controls import BankControls
from metering.sandbox.stripe.dashboard_controls import DashboardControls
from metering.sandbox.stripe.faults import Chance, Fault, Faults, RequestFault, WebhookFault
from metering.sandbox.stripe.holdings import Holding, holdings
from metering.sandbox.stripe.store import Store
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


class Controls(BankControls, DashboardControls):
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

    def resend(self, event: str) -> None:
        """Send an event's webhook once more, delivered or not."""
        with self._store.work() as work:
            work.find(event, "event", "event")
        self._webhooks.resend(event)

    def set_webhook(
        self, url: str | None, *, secrets: Sequence[str] = (), account: str | None = None
    ) -> None:
        """Where webhooks go, signed by each of `secrets`; None: nowhere. Raises ValueError for what is no address.

        `account` is another than the first.
        """
        target = None if url is None else Target(url, tuple(secrets))
        with self._store.work() as work:
            owner = find_account(work, account)["id"]
        self._webhooks.set_target(target, owner)

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
        """Forget all objects, keys, faults and counts, as if it were new.

        The first account stays with its API keys and the address of its webhooks; others are closed.
        """
        self.clear_faults()
        self._webhooks.forget()
        self._store.clear(new_account(self._store.now(), account_id=self._store.first_account))
        self._api_keys.set_others(())
        self._webhooks.sent = 0
        for counter in (self._answering.asked, self._answering.executed, self._answering.made):
            counter.clear()
        self._request_faults.met.clear()
        self._webhook_faults.met.clear()

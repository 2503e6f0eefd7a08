"""What the payments' tests share: an org, its card, a Stripe that isn't one, and a clock that can be moved."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

import psycopg
import redis
import stripe
from sqlalchemy import Engine, text

from db.accounts.billing import BillingAccount, read_account
from db.accounts.orgs import create_org
from db.accounts.suspensions import Suspension, resume_org, suspend_org
from db.attempts.attempts import Attempt, due_attempts, list_attempts
from db.attempts.reload_rule import ask_due
from db.audit.full import run_audit
from db.ledger.adjustments import adjust
from db.ledger.balances import read_balances
from db.postgres.engine import transaction
from metering.payments.accounts import SettingsPatch, change_settings
from metering.payments.audit import audit_against_stripe
from metering.payments.cards import ensure_customer, set_default_payment_method
from metering.payments.charges import process_attempt
from metering.payments.context import Payments
from metering.payments.event_list import read_events
from metering.payments.settling import follow
from metering.payments.stripe_api import API_VERSION, connect_stripe
from metering.payments.top_ups import ToppedUp, mark_told, top_up
from metering.payments.webhooks import receive
from metering.runtime.clock import system_clock
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET, StripeSandbox
from metering.sandbox.stripe.signatures import signature_header
from metering.signals.gates import Gates
from metering.signals.reload_signals import ReloadSignals
from tests.conftest import Database
from tests.database_clock import own_database_clock, set_database_clock
from workers.gate_reconciler import GateReconciler

RETURN_URL = "https://example.com/back"
START = datetime(2026, 4, 20, 12, 0, tzinfo=UTC)


class MovableClock:
    """A clock that stands until it is moved; Postgres's with it, where it is bound to a database (`tests.database_clock`)."""

    def __init__(self, at: datetime = START, database: "psycopg.Connection | None" = None) -> None:
        self._database = database
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    @property
    def at(self) -> datetime:
        return self._at

    @at.setter
    def at(self, at: datetime) -> None:
        self._at = at
        if self._database is not None:
            set_database_clock(self._database, at)

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


@dataclass
class World:
    """One installation with one org, number 1, unless more are made."""

    engine: Engine
    client: redis.Redis
    sandbox: StripeSandbox
    clock: MovableClock
    payments: Payments
    stripe: stripe.StripeClient
    """Stripe as somebody else with our key sees it: for looking, and for doing what our own code never would."""
    enqueued: list[tuple[int, UUID]] = field(default_factory=list)
    """Attempts that the jobs were told of, and that `work` has not yet worked on."""

    def change_account(self) -> None:
        """Another Stripe account's key is set, as when a test key is changed for a live one: nothing is there any more."""
        opened = self.sandbox.open_account()
        api = connect_stripe(opened.api_key, base_url=self.sandbox.url)
        self.payments = replace(self.payments, stripe=api)
        self.stripe = raw_stripe(self.sandbox, opened.api_key)

    def go_astray(self, by: timedelta) -> None:
        """From now on the process's own clock is ahead by so much, or behind; Postgres's and Stripe's are not."""
        self.payments = replace(self.payments, clock=lambda: self.clock() + by)

    def make_org(self, org_id: int, balance_cents: int = 0) -> None:
        with transaction(self.engine) as connection:
            create_org(connection, f"Org {org_id}", self.clock(), org_id=org_id)
        if balance_cents:
            self.adjust(balance_cents, org_id=org_id)

    def adjust(self, cents: int, *, org_id: int = 1, key: str | None = None) -> None:
        """Move the balance; what follows, follows."""
        with transaction(self.engine) as connection:
            posted = connection.scalar(text("SELECT count(*) FROM transactions"))
            done = adjust(
                connection,
                org_id,
                amount_cents=cents,
                reason="test",
                key=key or f"adjustment-{posted}",
            )
        follow(self.payments, done.reloads, done.change)

    def save_card(self, card: str = "pm_card_visa", *, org_id: int = 1) -> str:
        """Save a card and make it the default; give the payment method."""
        method = self.sandbox.save_card(ensure_customer(self.payments, org_id), card=card)
        set_default_payment_method(self.payments, org_id, method)
        return method

    def settings(self, *, org_id: int = 1, **values: Any) -> BillingAccount:
        """PATCH reload settings, named without `auto_reload_`, but for `monthly_limit` and so on with `_cents`."""
        patch = SettingsPatch(**{f"auto_reload_{name}": value for name, value in values.items()})
        return change_settings(self.payments, org_id, patch)

    def top_up(
        self,
        amount_cents: int = 2_000,
        *,
        org_id: int = 1,
        method: str | None = None,
        key: str | None = None,
        told: bool = True,
    ) -> ToppedUp:
        """Top up as a client does that gets the answer, unless `told` is false."""
        done = top_up(
            self.payments, org_id, amount_cents=amount_cents, payment_method_id=method, idempotency_key=key
        )
        if told:
            mark_told(self.payments, org_id, done, heard=True)
        return done

    def work(self) -> None:
        """Let the jobs do what they were told of, until nothing is left."""
        while self.enqueued:
            process_attempt(self.payments, *self.enqueued.pop(0))

    def process_due_attempts(self) -> None:
        """Let the reconciler work on the attempts that are due, and on nothing else."""
        for org_id, attempt_id in due_attempts(self.engine, limit=1_000):
            process_attempt(self.payments, org_id, attempt_id)

    def read_events(self) -> int | None:
        """Let the reconciler read the list of events, if it is time; give how many were new."""
        return read_events(self.payments)

    def events(self, wanted: str = "*") -> list[dict[str, Any]]:
        """Stripe's events of these types, oldest first, as its API gives them."""
        listed = self.stripe.v1.events.list({"limit": 100})
        found = [each.to_dict() for each in listed.auto_paging_iter()][::-1]
        return [each for each in found if fnmatchcase(each["type"], wanted)]

    def deliver(self, *events: dict[str, Any]) -> list[str]:
        """Bring events as webhooks, in this order; give what became of each."""
        return [self._deliver(event) for event in events]

    def _deliver(self, event: dict[str, Any]) -> str:
        body = json.dumps(event).encode()
        signature = signature_header(body, [WEBHOOK_SECRET], int(self.clock().timestamp()))
        return receive(self.payments, body, signature, [WEBHOOK_SECRET])

    def reconcile(self) -> None:
        """Let the reconciler go over everything once: due attempts, the rule, the list of events."""
        self.process_due_attempts()
        self.read_events()
        for reloads in ask_due(self.engine):
            follow(self.payments, reloads)
        self.work()

    def mend_gates(self) -> None:
        """Let the reconciler mend the gates that a crash left behind."""
        GateReconciler(self.engine, self.payments.gates, clock=self.clock, sleep=lambda _: None).reconcile()

    def charged(self) -> int:
        """How many charges took money at Stripe, ever, whoever's."""
        return self.sandbox.totals().charges

    def intents(self) -> list[dict[str, Any]]:
        """Stripe's PaymentIntents, oldest first, as its API gives them."""
        listed = self.stripe.v1.payment_intents.list({"limit": 100})
        return [each.to_dict() for each in listed.auto_paging_iter()][::-1]

    def account(self, org_id: int = 1) -> BillingAccount:
        found = read_account(self.engine, org_id)
        assert found is not None
        return found

    def balance(self, org_id: int = 1) -> int:
        return self.account(org_id).balance_cents

    def attempts(self, org_id: int = 1) -> list[Attempt]:
        """Oldest first."""
        with transaction(self.engine) as connection:
            found, _ = list_attempts(connection, limit=1_000, org_id=org_id)
        return found[::-1]

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        with transaction(self.engine) as connection:
            return list(connection.execute(text(query), parameters))

    def org_ids(self) -> list[int]:
        return [row.org_id for row in self.rows("SELECT org_id FROM accounts ORDER BY org_id")]

    def suspend_org(self, org_id: int = 1) -> Suspension:
        """As `metering org suspend` does."""
        return self._change_suspension(suspend_org, org_id)

    def resume_org(self, org_id: int = 1) -> Suspension:
        """As `metering org resume` does."""
        return self._change_suspension(resume_org, org_id)

    def _change_suspension(self, change: Callable[..., Suspension], org_id: int) -> Suspension:
        with transaction(self.engine) as connection:
            done = change(connection, org_id)
        self.payments.gates.follow([done.balance], self.clock())
        follow(self.payments, done.reloads)
        return done

    def held_cents(self, org_id: int = 1) -> int:
        """What Stripe says it holds for the org."""
        customer = self.account(org_id).stripe_customer_id
        holding = self.sandbox.holdings().get(customer or "")
        return 0 if holding is None else holding.net_cents

    def assert_sound(self) -> None:
        """Every invariant holds, here and against Stripe, and the gates say what the balances say."""
        report = run_audit(self.engine)
        assert report.passed, report.violations
        report_of_stripe = audit_against_stripe(self.engine, self.payments.stripe)
        assert report_of_stripe.violations == [], report_of_stripe.violations
        org_ids = self.org_ids()
        balances = read_balances(self.engine, org_ids)
        for gate, balance in zip(Gates(self.client).read(org_ids), balances, strict=True):
            assert gate.follows(balance) or balance.version == 0, (gate, balance)


def raw_stripe(sandbox: StripeSandbox, api_key: str | None = None) -> stripe.StripeClient:
    """The SDK itself, without retries."""
    return stripe.StripeClient(
        api_key or sandbox.api_key,
        stripe_version=API_VERSION,
        base_addresses={"api": sandbox.url},
        max_network_retries=0,
    )


@contextmanager
def make_world(database: Database, client: redis.Redis, *, at: datetime | None = START) -> Iterator[World]:
    """A world with org 1, without money or card.

    Its clock and Postgres's stand at `at` until they are moved. None: Postgres's goes as ever, for real processes.
    """
    engine = database.engine
    enqueued: list[tuple[int, UUID]] = []
    with ExitStack() as stack:
        if at is None:
            clock = MovableClock(system_clock())
        else:
            clock = MovableClock(at, stack.enter_context(own_database_clock(database.admin_url)))
        sandbox = stack.enter_context(StripeSandbox(clock=clock))
        payments = Payments(
            engine=engine,
            gates=Gates(client),
            signals=ReloadSignals(client),
            stripe=connect_stripe(sandbox.api_key, base_url=sandbox.url),
            clock=clock,
            enqueue=lambda org_id, attempt_id: enqueued.append((org_id, attempt_id)),
            return_url=RETURN_URL,
        )
        world = World(engine, client, sandbox, clock, payments, raw_stripe(sandbox), enqueued)
        world.make_org(1)
        yield world

"""What the tests of reloads share: calls, cards, banks, Stripe's events, and one installation that is emptied for each test."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

import psycopg
import redis
from psycopg.rows import namedtuple_row
from sqlalchemy import make_url

from db.accounts.resumptions import resume_reloads
from db.attempts.attempts import Attempt
from db.attempts.refused_holds import ask_refused, note_refused
from db.attempts.reload_rule import ask_due, ask_every, read_standing
from db.audit.full import AuditReport, run_audit
from db.ledger.post_calls import Posted, post_calls, price_call
from db.ledger.price_book import load_price_book
from db.ledger.prices import set_price
from db.postgres.engine import in_transaction, transaction
from metering.payments.context import Payments
from metering.payments.settling import follow
from metering.payments.stripe_api import StripeApi, connect_stripe
from metering.payments.stripe_failures import StripeFailure
from metering.rules.events import CallEvent
from metering.rules.payments import AttemptKind
from metering.rules.reloads import Pause
from metering.sandbox.stripe.sandbox import StripeSandbox
from metering.signals.gates import Gates
from metering.signals.reload_signals import ReloadSignals, publish_overdue
from tests.conftest import Database
from tests.database_clock import own_database_clock
from tests.payments.world import RETURN_URL, START, MovableClock, World, raw_stripe
from tests.signals.listening import signals_log
from tests.spine.billing import price

TIER: Final = price("cent", "0.60", increment_first_s=1, increment_next_s=1)
"""A call of so many seconds costs so many cents."""
MINIMUM: Final = 1_000
AMOUNT: Final = 5_000

_TABLES: Final = (
    *(
        "transactions",
        "payment_attempts",
        "refused_holds",
        "reload_states",
        "pending_signals",
        "payment_methods",
    ),
    *(
        "reload_resumptions",
        "stripe_events",
        "set_aside_events",
        "operator_log",
        "operator_refunds",
        "stripe_cursors",
        "stripe_customers",
        "idempotency_keys",
        "rejected_events",
        "accounts",
    ),
)


class WatchedStripe:
    """Stripe, with an eye on it: nothing is said to it inside a transaction, and a test may step in after each answer."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self.after: Callable[[str], None] = lambda _: None
        """Called with the method's name when Stripe has answered, before anything is made of the answer."""

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._api, name)
        if not callable(member):
            return member

        def call(*args: Any, **options: Any) -> Any:
            assert not in_transaction()
            answer = member(*args, **options)
            if isinstance(answer, Iterator):
                answer = iter(list(answer))
            self.after(name)
            return answer

        return call


@dataclass
class ReloadWorld(World):
    """A world whose org has a tier to call with."""

    admin: "psycopg.Connection | None" = None
    """Outside of everybody's transactions."""
    price_book_version: int = 0
    call_ids: Iterator[int] = field(default_factory=lambda: iter(range(1, 1_000_000_000)))

    @property
    def watched(self) -> WatchedStripe:
        return cast("WatchedStripe", self.payments.stripe)

    def enable(
        self,
        *,
        minimum: int = MINIMUM,
        amount: int = AMOUNT,
        limit: int | None = None,
        card: str | None = "pm_card_visa",
        org_id: int = 1,
    ) -> str | None:
        """Save a card, unless None, and enable reloads; give the payment method."""
        method = None if card is None else self.save_card(card, org_id=org_id)
        self.settings(
            org_id=org_id,
            enabled=True,
            minimum_cents=minimum,
            amount_cents=amount,
            monthly_limit_cents=limit,
        )
        return method

    def resume(self, reason: str) -> None:
        """Lift the pause, as an operator does."""
        with transaction(self.engine) as connection:
            _, reloads = resume_reloads(connection, 1, by="ann", reason=reason)
        follow(self.payments, reloads)

    def post(self, calls: Iterable[tuple[int, int]]) -> Posted:
        """Bill calls in one batch, each given by its org and its cents; nothing follows yet."""
        priced = []
        for org_id, cents in calls:
            call_id = next(self.call_ids)
            duration_us = cents * 1_000_000
            event = CallEvent(
                call_id, org_id, TIER.tier, "outbound", duration_us, self.clock(), None, None, "{}"
            )
            priced.append(price_call(f"1-{call_id}", b"{}", event, TIER))
        with transaction(self.engine) as connection:
            return post_calls(connection, priced, [], price_book_version=self.price_book_version)

    def call(self, *cents: int, org_id: int = 1) -> Posted:
        """Bill calls of these prices in one batch, and let follow what follows."""
        posted = self.post((org_id, each) for each in cents)
        changes = list(posted.changes.values())
        follow(self.payments, posted.reloads, changes[0] if changes else None)
        return posted

    def reconcile(self) -> None:
        """Let the reconciler go over everything once; what one part of it fails with keeps no other from its work."""
        self.process_due_attempts()
        with suppress(StripeFailure):
            self.read_events()
        self.ask_rule()
        self.work()

    def refuse(self, first_increment_cents: int, *, org_id: int = 1) -> None:
        """A call is refused for want of money; it is noted, and the jobs come by."""
        note_refused(self.engine, {org_id: first_increment_cents})
        for reloads in ask_refused(self.engine):
            follow(self.payments, reloads)

    def ask_rule(self) -> None:
        """Let the reconciler ask the rule for every org whose time has come; nobody else has anything to wait for."""
        for reloads in ask_due(self.engine):
            follow(self.payments, reloads)
        assert list(ask_every(self.engine)) == [], "the walk found what had to be noted as due"

    def audit(self) -> AuditReport:
        return run_audit(self.engine)

    def glance(self, query: str, *parameters: object) -> list[Any]:
        """Rows, as `rows` gives them, for who looks very often."""
        assert self.admin is not None
        with self.admin.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(query.encode(), parameters).fetchall()

    def reloads(self, org_id: int = 1) -> list[Attempt]:
        """The org's auto-reloads, oldest first."""
        return [each for each in self.attempts(org_id) if each.kind is AttemptKind.AUTO_RELOAD]

    def statuses(self, org_id: int = 1) -> list[str]:
        return [each.status.value for each in self.reloads(org_id)]

    def pause(self, org_id: int = 1) -> Pause | None:
        """In force or run out."""
        with transaction(self.engine) as connection:
            return read_standing(connection, org_id).pause

    def skip_reason(self, org_id: int = 1) -> str | None:
        found = self.rows("SELECT skip_reason FROM reload_states WHERE org_id = :org_id", org_id=org_id)
        return found[0].skip_reason if found else None

    def reload_intents(self, org_id: int = 1) -> list[dict[str, Any]]:
        """PaymentIntents of the org's auto-reloads, oldest first."""
        return [
            each
            for each in self.intents()
            if each["metadata"].get("org_id") == str(org_id)
            and each["metadata"]["attempt_kind"] == "auto_reload"
        ]

    def taken(self, org_id: int = 1) -> int:
        """How many of the org's auto-reloads took money at Stripe."""
        return sum(each["status"] == "succeeded" for each in self.reload_intents(org_id))

    def asked(self, operation: str = "payment_intents.create") -> int:
        """How often Stripe was asked for it, whatever it said."""
        return self.sandbox.totals().asked.get(operation, 0)

    def detach(self, method: str) -> None:
        """A card is detached in the dashboard, and the webhook comes."""
        self.sandbox.detach(method)
        self.deliver(self.events("payment_method.detached")[-1])

    def deliver_all(self) -> None:
        """Every event comes that has not, in its order."""
        self.deliver(*self.events())

    def refund(self, cents: int | None = None, *, number: int = -1) -> None:
        """A reload is refunded in the dashboard, the newest or another one, and the webhooks come."""
        intent = [each for each in self.reload_intents() if each["status"] == "succeeded"][number]
        self.sandbox.refund(intent["id"], amount_cents=cents)
        self.deliver_all()
        self.work()

    def drain(self, *, hours: float = 30, step_minutes: float = 180) -> None:
        """Let so much time pass, the reconciler going round all the while."""
        end = self.clock.at.timestamp() + hours * 3_600
        while self.clock.at.timestamp() < end:
            self.clock.move(minutes=step_minutes)
            self.reconcile()

    def publish_overdue(self) -> None:
        """What the reconciler does for signals, once they are old enough."""
        self.clock.move(seconds=11)
        publish_overdue(self.engine, self.payments.signals)

    def signals(self, org_id: int = 1) -> list[dict[str, Any]]:
        """What was said about the org's reloads, oldest first."""
        return [
            each
            for each in signals_log(self.client)
            if each["org_id"] == org_id and each["type"].startswith("auto_reload.")
        ]

    def said(self, org_id: int = 1) -> list[str]:
        """The same in short: what happened, with its code or reason."""
        return [
            " ".join(
                [each["type"].removeprefix("auto_reload."), *filter(None, [each.get("code")])]
                + [each[name] for name in ("reason",) if name in each]
            )
            for each in self.signals(org_id)
        ]


@dataclass
class Site:
    """A database, a Valkey and a stand-in for Stripe that are used again and again, emptied each time."""

    database: Database
    client: redis.Redis
    sandbox: StripeSandbox
    clock: MovableClock
    admin: "psycopg.Connection"
    price_book_version: int

    def fresh(self, *, at: datetime = START) -> ReloadWorld:
        """A world with org 1, without money or card."""
        self.clock.at = at
        for table in _TABLES:
            self.admin.execute(f"DELETE FROM {table}".encode())  # noqa: S608 - the names above
        self.client.flushdb()
        self.sandbox.reset()
        enqueued: list[Any] = []
        stripe = WatchedStripe(connect_stripe(self.sandbox.api_key, base_url=self.sandbox.url))
        payments = Payments(
            engine=self.database.engine,
            gates=Gates(self.client),
            signals=ReloadSignals(self.client),
            stripe=cast("StripeApi", stripe),
            clock=self.clock,
            enqueue=lambda org_id, attempt_id: enqueued.append((org_id, attempt_id)),
            return_url=RETURN_URL,
        )
        world = ReloadWorld(
            engine=self.database.engine,
            client=self.client,
            sandbox=self.sandbox,
            clock=self.clock,
            payments=payments,
            stripe=raw_stripe(self.sandbox),
            enqueued=enqueued,
            admin=self.admin,
            price_book_version=self.price_book_version,
        )
        world.make_org(1)
        return world


@contextmanager
def make_site(database: Database, client: redis.Redis) -> Iterator[Site]:
    """A site on a database of its own, which has to be fresh and migrated."""
    with own_database_clock(database.admin_url) as admin, ExitStack() as stack:
        clock = MovableClock(database=admin)
        sandbox = stack.enter_context(StripeSandbox(clock=clock))
        # Append-only tables are emptied between tests, and nothing here is to outlive a crash of Postgres.
        admin.execute("SET session_replication_role = replica")
        admin.execute("SET synchronous_commit = off")
        name = make_url(database.url).database
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
        with transaction(database.engine) as connection:
            set_price(connection, TIER, clock)
        with transaction(database.engine) as connection:
            version = load_price_book(connection).version
        yield Site(database, client, sandbox, clock, admin, version)

"""Every role as a process, on a Postgres with a standby and a Valkey with a replica and three Sentinels."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
from psycopg.conninfo import make_conninfo

from db.accounts.api_keys import create_key
from db.ledger.adjustments import adjust
from db.postgres.engine import make_engine, transaction
from db.postgres.schema import migrate
from metering.client import MeteringClient, TelephonyError
from metering.console.roles import Role, Supervisor
from metering.runtime.clock import system_clock
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.servers.postgres import APPLICATION_ROLE, DATABASE, OWNER_ROLE, PORT
from metering.sandbox.servers.replicated_postgres import ReplicatedPostgres, execute
from metering.sandbox.stripe.sandbox import API_KEY, WEBHOOK_SECRET, StripeSandbox
from metering.trials.chaos.links import HOST, Links
from tests.cli.conftest import Cli
from tests.external_servers.pgbouncer import PgBouncer, pooled
from tests.external_servers.process import free_port
from tests.external_servers.valkeys import Watched, watched
from tests.spine.billing import balances, debits, event, prepare, price
from tests.waiting import wait_until

ROLES: Final = ("meter", "jobs", "api")
PAYS, MENDED = 1, 2
"""Orgs: whose calls are billed, and whose gate is damaged."""
START_CENTS: Final = 1_000_000
START_LIMIT_S: Final = 120.0


@dataclass
class Installation:
    """All of it."""

    postgres: ReplicatedPostgres
    valkey: Watched
    links: Links
    stripe: StripeSandbox
    api: CustomerApi
    cli: Cli
    log_path: Path
    bouncer: PgBouncer | None
    confirmed: list[int] = field(default_factory=list)
    call_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    topped_up_cents: int = 0

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """On the primary, as superuser, in the database `postgres`."""
        return execute(self.postgres.primary, statement)

    @contextmanager
    def operator(self) -> Iterator[redis.Redis]:
        """At the Valkey that takes writes now."""
        yield self.valkey.primary().client

    def push(self, client: MeteringClient) -> bool:
        """One call more; whether it was confirmed."""
        number = next(self.call_ids)
        try:
            client.push(event(call_id=number, org_id=PAYS))
        except TelephonyError:
            return False
        self.confirmed.append(number)
        return True

    def billed(self) -> list[int]:
        """Calls that were debited, as the primary has it."""
        engine = make_engine(self.postgres.primary.url(APPLICATION_ROLE, DATABASE), application_name="table")
        try:
            return [row.call_id for row in debits(engine)]
        finally:
            engine.dispose()

    def balance_cents(self) -> int:
        engine = make_engine(self.postgres.primary.url(APPLICATION_ROLE, DATABASE), application_name="table")
        try:
            return balances(engine)[PAYS]
        finally:
            engine.dispose()


@contextmanager
def installed(directory: Path, *, bouncer: bool, say: Callable[[str], None]) -> Iterator[Installation]:
    """Everything running, and one customer with a saved card."""
    with ExitStack() as stack:
        postgres = stack.enter_context(ReplicatedPostgres(directory / "postgres"))
        valkey = stack.enter_context(watched(directory / "valkey"))
        links = stack.enter_context(Links())
        ports = [
            links.add(name, server.socket_path)
            for name, server in (("first", postgres.primary), ("second", postgres.standby))
        ]
        with_owner = make_engine(postgres.primary.url(OWNER_ROLE, DATABASE), application_name="table")
        migrate(with_owner)
        with_owner.dispose()
        engine = make_engine(postgres.primary.url(APPLICATION_ROLE, DATABASE), application_name="table")
        prepare(engine, org_ids=[PAYS, MENDED], prices=[price("bolt", "0.08")])
        with transaction(engine) as connection:
            key = create_key(connection, PAYS, system_clock()).api_key
        for org_id in (PAYS, MENDED):
            with transaction(engine) as connection:
                adjust(connection, org_id, amount_cents=START_CENTS, reason="t", key="start")
        engine.dispose()
        pooler = None
        conninfo = make_conninfo(
            host=f"{HOST},{HOST}",
            port=",".join(map(str, ports)),
            dbname=DATABASE,
            user=APPLICATION_ROLE,
            sslmode="disable",
        )
        if bouncer:
            pooler = stack.enter_context(pooled(directory / "pgbouncer", postgres.primary.sockets_dir, PORT))
            conninfo = pooler.url(APPLICATION_ROLE, DATABASE)
        port = free_port()
        stripe = stack.enter_context(StripeSandbox(webhook_url=f"http://{HOST}:{port}/v1/stripe/webhook"))
        settings = {
            "METERING_DATABASE_URL": conninfo,
            "METERING_REDIS_URL": valkey.url,
            "METERING_HTTP_PORT": str(port),
            "STRIPE_API_KEY": API_KEY,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "STRIPE_API_BASE": stripe.url,
        }
        log_path = directory / "roles.log"
        roles = [Role(name, (name,)) for name in ROLES]
        stack.enter_context(Supervisor(roles, say=say, log_path=log_path, settings=settings))
        found = Installation(
            postgres, valkey, links, stripe, CustomerApi(port, key), Cli(settings), log_path, pooler
        )
        for said in ("jobs are running", "meter is ready", "the API is served"):
            wait_until(lambda said=said: said in found.log, limit_s=START_LIMIT_S)  # type: ignore[misc]
        wait_until(lambda: answered(found, "GET", "/readyz") == 200, limit_s=START_LIMIT_S)
        made = found.api.ask("POST", "/v1/billing/setup-intent")
        assert made is not None
        method = stripe.confirm_setup(made.body["setup_intent_id"])
        assert answered(found, "POST", "/v1/billing/default-payment-method", payment_method_id=method) == 200
        yield found


def answered(found: Installation, verb: str, path: str, **body: object) -> int | None:
    answer = found.api.ask(verb, path, body or None)
    return None if answer is None else answer.status

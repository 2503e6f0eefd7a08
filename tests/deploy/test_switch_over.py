"""Postgres switched over beneath running roles: nobody stays with the server that no longer writes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from sqlalchemy import Engine

from db.accounts.api_keys import create_key
from db.ledger.adjustments import adjust
from db.postgres.engine import make_engine, transaction
from db.postgres.schema import migrate
from metering.console.roles import Role, Supervisor
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.servers.embedded import running
from metering.sandbox.servers.postgres import APPLICATION_ROLE, DATABASE, OWNER_ROLE, Postgres
from metering.sandbox.servers.replicated_postgres import ReplicatedPostgres
from metering.sandbox.stripe.sandbox import API_KEY, WEBHOOK_SECRET, StripeSandbox
from metering.trials.chaos.links import HOST, Links
from tests.cli.conftest import Cli
from tests.deploy.stack import free_port
from tests.deploy.watching import seconds_until_right
from tests.spine.billing import assert_sound, balances, debits, event, prepare, price, push
from tests.waiting import wait_until
from workers.stream import backlog

pytestmark = pytest.mark.long

RIGHT_WITHIN_S: Final = 10.0
"""After the server that writes can be reached at an address that the roles know."""
WATCHED_S: Final = 40.0
"""How long a role that isn't right is waited for, so that a failure tells by how much it is late."""
START_LIMIT_S: Final = 60.0
STARTING_CENTS: Final = 1_000
CALL_CENTS: Final = 16
"""75 s at 0.08 a minute, in whole minutes."""
CALLS: Final = 15
"""So many of each org that calls: a third before the switch-over, the others while nothing can be written."""
RELOADS, TOPS_UP, CALLS_ONLY = 1, 2, 3
"""Orgs, by what they do."""
RELOAD: Final = {
    "auto_reload_enabled": True,
    "auto_reload_minimum_cents": 900,
    "auto_reload_amount_cents": 1_500,
}
TOP_UP_CENTS: Final = 2_000
ROLES: Final = ("meter", "jobs", "api")
BILLING: Final = "/v1/billing"


def link_of(role: str) -> str:
    return f"{role} > postgres"


@dataclass(frozen=True)
class Installation:
    """Every role as a process, each with an address of its own for Postgres, which leads to where the test says."""

    postgres: ReplicatedPostgres
    links: Links
    client: redis.Redis
    stripe: StripeSandbox
    api: Mapping[int, CustomerApi]
    """By org."""
    log_path: Path
    cli: Cli

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def move_address(self) -> None:
        """Have it lead to the server that writes; connections that are open stay open, and where they are."""
        for role in ROLES:
            self.links.move(link_of(role), self.postgres.primary.socket_path)

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """On the server that writes, whatever the roles' address leads to."""
        with engine_on(self.postgres.primary, APPLICATION_ROLE) as engine:
            yield engine

    def status(self, org_id: int, verb: str, path: str, **body: object) -> int | None:
        answer = self.api[org_id].ask(verb, path, body or None)
        return None if answer is None else answer.status

    def balance_cents(self, org_id: int) -> Any:
        """As the API tells it."""
        answer = self.api[org_id].ask("GET", BILLING)
        return None if answer is None else answer.body.get("balance_cents")

    def ready(self) -> bool:
        return self.status(CALLS_ONLY, "GET", "/readyz") == 200

    def patched(self) -> bool:
        return self.status(CALLS_ONLY, "PATCH", BILLING, auto_reload_enabled=False) == 200

    def topped_up(self) -> bool:
        return self.status(TOPS_UP, "POST", f"{BILLING}/top-up", amount_cents=TOP_UP_CENTS) == 201


@contextmanager
def engine_on(server: Postgres, role: str) -> Iterator[Engine]:
    engine = make_engine(server.url(role, DATABASE), application_name="test")
    try:
        yield engine
    finally:
        engine.dispose()


def one_address(links: Links, role: str, postgres: ReplicatedPostgres) -> str:
    """An address that is moved by whoever switches over."""
    return f"{HOST}:{links.add(link_of(role), postgres.primary.socket_path)}"


def both_addresses(links: Links, role: str, postgres: ReplicatedPostgres) -> str:
    """The two servers' own addresses, which stay as they are."""
    ports = [
        links.add(f"{link_of(role)} {number}", server.socket_path)
        for number, server in enumerate((postgres.primary, postgres.standby))
    ]
    return ",".join(f"{HOST}:{port}" for port in ports)


@contextmanager
def installed(
    directory: Path, addressed: Callable[[Links, str, ReplicatedPostgres], str]
) -> Iterator[Installation]:
    """All roles at work, with two customers that have saved cards."""
    with ExitStack() as stack:
        postgres = stack.enter_context(ReplicatedPostgres(directory / "postgres"))
        valkey = stack.enter_context(running(directory / "valkey", postgres=False))
        links = stack.enter_context(Links())
        keys = make_ledger(postgres.primary)
        port = free_port()
        stripe = stack.enter_context(StripeSandbox(webhook_url=f"http://{HOST}:{port}/v1/stripe/webhook"))
        settings = {
            "METERING_REDIS_URL": valkey.redis_url,
            "METERING_HTTP_PORT": str(port),
            "STRIPE_API_KEY": API_KEY,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "STRIPE_API_BASE": stripe.url,
        }
        log_path = directory / "roles.log"
        for role in ROLES:
            hosts = addressed(links, role, postgres)
            settings["METERING_DATABASE_URL"] = (
                f"postgresql://{APPLICATION_ROLE}@{hosts}/{DATABASE}?sslmode=disable"
            )
            stack.enter_context(
                Supervisor([Role(role, (role,))], say=print, log_path=log_path, settings=settings)
            )
        found = Installation(
            postgres,
            links,
            stack.enter_context(connect_redis(valkey.redis_url)),
            stripe,
            {org_id: CustomerApi(port, key) for org_id, key in keys.items()},
            log_path,
            Cli(settings),
        )
        wait_until(found.ready, limit_s=START_LIMIT_S)
        for event_name in ("jobs are running", "meter is ready"):
            wait_until(lambda said=event_name: said in found.log, limit_s=START_LIMIT_S)  # type: ignore[misc]
        for org_id in (RELOADS, TOPS_UP):
            save_card(found, org_id)
        assert found.status(RELOADS, "PATCH", BILLING, **RELOAD) == 200
        yield found


def make_ledger(primary: Postgres) -> dict[int, str]:
    """Orgs with some money; gives the API key of each."""
    keys = {}
    with engine_on(primary, OWNER_ROLE) as owner:
        migrate(owner)
    with engine_on(primary, APPLICATION_ROLE) as engine:
        prepare(engine, org_ids=[RELOADS, TOPS_UP, CALLS_ONLY], prices=[price("bolt", "0.08")])
        for org_id in (RELOADS, TOPS_UP, CALLS_ONLY):
            with transaction(engine) as connection:
                keys[org_id] = create_key(connection, org_id, system_clock()).api_key
                adjust(
                    connection,
                    org_id,
                    amount_cents=STARTING_CENTS,
                    reason="test",
                    key="start",
                )
    return keys


def save_card(found: Installation, org_id: int) -> None:
    made = found.api[org_id].ask("POST", f"{BILLING}/setup-intent")
    assert made is not None
    method = found.stripe.confirm_setup(made.body["setup_intent_id"])
    saved = found.status(org_id, "POST", f"{BILLING}/default-payment-method", payment_method_id=method)
    assert saved == 200


def calls_of(numbers: range) -> list[dict[str, Any]]:
    return [
        event(call_id=org_id * 1_000 + number, org_id=org_id)
        for org_id in (RELOADS, CALLS_ONLY)
        for number in numbers
    ]


def assert_right_in_time(found: Installation) -> None:
    """From now on every role has `RIGHT_WITHIN_S`; then everything was billed and charged once, and the audits find nothing."""
    left_cents = STARTING_CENTS - CALLS * CALL_CENTS
    with found.engine() as engine:
        took_s = seconds_until_right(
            WATCHED_S,
            {
                "api: readyz": found.ready,
                "api: PATCH": found.patched,
                "api: top-up": found.topped_up,
                "api: balance": lambda: found.balance_cents(CALLS_ONLY) == left_cents,
                "meter: billed": lambda: balances(engine)[CALLS_ONLY] == left_cents,
                "jobs: reload": lambda: balances(engine)[RELOADS] == left_cents + 1_500,
            },
        )
        late = {name: seconds for name, seconds in took_s.items() if seconds > RIGHT_WITHIN_S}
        assert not late, f"too late: {late}, of {took_s}"
        # Nothing is meant to fail any more: whatever a pool still held would show.
        assert all(
            (found.ready(), found.patched(), found.balance_cents(TOPS_UP) == STARTING_CENTS + TOP_UP_CENTS)
            for _ in range(20)
        )
        wait_until(lambda: backlog(found.client).length == 0, limit_s=RIGHT_WITHIN_S)
        expected = sorted(call["call_id"] for call in calls_of(range(CALLS)))
        assert sorted(row.call_id for row in debits(engine)) == expected
        assert found.stripe.totals().received_cents == TOP_UP_CENTS + 1_500
        assert_sound(engine)
    assert found.cli.process("audit", "--stripe").returncode == 0
    assert found.log.count('"event": "meter is ready"') >= 1
    assert "starting it again" not in found.log


def test_every_role_leaves_a_server_that_was_demoted(tmp_path: Path) -> None:
    """The address leads to the old server for some time more, which is back and only reads; then it is moved."""
    with installed(tmp_path, one_address) as found:
        push(found.client, calls_of(range(5)))
        wait_until(lambda: backlog(found.client).length == 0, limit_s=START_LIMIT_S)
        found.postgres.switch_over()
        said = len(found.log)
        wait_until(lambda: "a periodic task was interrupted" in found.log[said:], limit_s=START_LIMIT_S)
        push(found.client, calls_of(range(5, CALLS)))
        for _ in range(20):  # each of the API's pools comes upon it, by what only reads, too
            assert not found.patched()
            found.balance_cents(CALLS_ONLY)
            found.status(CALLS_ONLY, "GET", f"{BILLING}/transactions")
        assert not found.topped_up()
        unready = not found.ready()

        found.move_address()
        assert_right_in_time(found)
        assert unready, "it said that it can work while only a server that reads could be reached"


def test_of_two_addresses_the_one_that_writes_is_found(tmp_path: Path) -> None:
    """Nothing is moved: METERING_DATABASE_URL names both."""
    with installed(tmp_path, both_addresses) as found:
        push(found.client, calls_of(range(5)))
        wait_until(lambda: backlog(found.client).length == 0, limit_s=START_LIMIT_S)
        found.postgres.switch_over()
        push(found.client, calls_of(range(5, CALLS)))
        assert_right_in_time(found)

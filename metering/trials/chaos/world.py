"""The system that `metering chaos` attacks: every role a process, each of its connections over a link of its own."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, make_url

from db.accounts.api_keys import create_key
from db.accounts.orgs import create_org
from db.ledger.adjustments import adjust
from db.ledger.prices import set_price
from db.postgres.engine import psycopg_url, transaction
from db.postgres.schema import migrate
from metering.console.connections import engine_for
from metering.console.errors import CommandError
from metering.console.roles import Role, Supervisor
from metering.payments.stripe_api import connect_stripe
from metering.rules.money import MICROUSD_PER_USD
from metering.rules.pricing import Price
from metering.runtime.clock import ENVIRONMENT_VARIABLE, Clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import Servers, running
from metering.sandbox.servers.postgres import APPLICATION_ROLE, DATABASE, PORT
from metering.sandbox.servers.sockets import sockets_dir_of
from metering.sandbox.stripe.keeper import StandIn, answering_stand_in
from metering.sandbox.telephony.calls import RATES_CENTS_PER_MINUTE
from metering.trials.chaos.calendar import Calendar
from metering.trials.chaos.injector import TO_STRIPE
from metering.trials.chaos.links import HOST, Links
from metering.trials.chaos.operators import Operators
from metering.trials.chaos.run import World
from metering.trials.chaos.stores import Stores

STARTING_CENTS: Final = 600
STRIPE: Final = "stripe-sandbox"
API: Final = "api"
METERS: Final = ("meter-1", "meter-2")
CHARGING: Final = ("jobs-1", "jobs-2", API)
TELEPHONY: Final = ("telephony-1", "telephony-2")
CUSTOMERS: Final = "customers"
START_LIMIT_S: Final = 60.0
LOG: Final = "roles.log"


class Fleet:
    """Supervised roles, each with settings of its own."""

    def __init__(self, stack: ExitStack, log_path: Path, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._log_path = log_path
        self._say = say
        self._supervisors: list[Supervisor] = []
        self.names: list[str] = []
        """Those that were started."""

    def start(self, role: Role, settings: Mapping[str, str]) -> None:
        """Run a role, and again whenever it dies, until the stack is closed."""
        supervisor = Supervisor([role], say=self._say, log_path=self._log_path, settings=settings)
        self._supervisors.append(self._stack.enter_context(supervisor))
        self.names.append(role.name)

    def pids(self) -> dict[str, int]:
        """The processes that run at the moment, by role."""
        return {name: pid for supervisor in self._supervisors for name, pid in supervisor.pids().items()}


@contextmanager
def world(data_dir: Path, orgs: int, say: Callable[[str], None]) -> Iterator[World]:
    """The system, running in a new directory, with orgs that have a little money and keys. Raises CommandError."""
    with ExitStack() as stack:
        servers = stack.enter_context(running(data_dir))
        with engine_for(servers.owner_database_url, command="migrate", lock_timeout_ms=0) as owner:
            migrate(owner)
        calendar = Calendar(data_dir / "clock", psycopg_url(make_url(servers.owner_database_url)))
        engine = stack.enter_context(engine_for(servers.database_url, command="chaos", pool_size=4))
        _make_tiers(engine, calendar.clock)
        api_keys = _make_orgs(engine, orgs, calendar.clock)
        links = stack.enter_context(Links())
        api_port = _free_port()
        fleet = Fleet(stack, data_dir / LOG, lambda _: None)
        common = {"METERING_DATA_DIR": str(data_dir), ENVIRONMENT_VARIABLE: str(calendar.path)}
        webhooks_port = links.add(f"{STRIPE} > {API}", (HOST, api_port))
        fleet.start(
            Role(STRIPE, (STRIPE,), serves_metrics=False), common | {"METERING_HTTP_PORT": str(webhooks_port)}
        )
        stand_in = _await_stand_in(data_dir)
        common["METERING_HTTP_PORT"] = str(api_port)
        for name in METERS:
            settings = common | _stores(links, name, servers) | _clock(calendar, name)
            fleet.start(Role(name, ("meter", "--name", name)), settings)
        for name in CHARGING:
            settings = common | _stores(links, name, servers) | _stripe(links, name, stand_in)
            settings |= _clock(calendar, name)
            fleet.start(Role(name, (name.partition("-")[0],)), settings)
        valkey = _valkey_socket(servers)
        for name in TELEPHONY:
            links.add(f"{name} > valkey", valkey)
        links.add(f"{CUSTOMERS} > {API}", (HOST, api_port))
        say(f"{len(fleet.names)} roles and two servers, {len(links.names)} links between them")
        yield World(
            engine=engine,
            client=stack.enter_context(connect_redis(servers.redis_url)),
            admin_url=_admin_url(servers),
            links=links,
            telephony_links=[f"{name} > valkey" for name in TELEPHONY],
            customers_link=f"{CUSTOMERS} > {API}",
            stores=Stores(servers.data_dir),
            calendar=calendar,
            roles=fleet,
            role_names=fleet.names,
            clocks=[*METERS, *CHARGING],
            operators=Operators(
                {"METERING_DATA_DIR": str(data_dir), ENVIRONMENT_VARIABLE: str(calendar.path)}
            ),
            api_port=api_port,
            stripe_url=stand_in.url,
            stripe=connect_stripe(stand_in.api_key, base_url=stand_in.url),
            api_keys=api_keys,
            starting_cents=dict.fromkeys(api_keys, STARTING_CENTS),
        )


def _make_tiers(engine: Engine, clock: Clock) -> None:
    with transaction(engine) as connection:
        for tier, rate_cents in RATES_CENTS_PER_MINUTE.items():
            set_price(
                connection, Price(tier, None, rate_cents * MICROUSD_PER_USD // 100, 60, 60, 0, 0), clock
            )


def _make_orgs(engine: Engine, orgs: int, clock: Clock) -> dict[int, str]:
    """Orgs with a little money, and the API key of each: made before any backup, so that no restore forgets them."""
    keys: dict[int, str] = {}
    with transaction(engine) as connection:
        for number in range(1, orgs + 1):
            org_id = create_org(connection, f"Chaos {number}", clock())
            keys[org_id] = create_key(connection, org_id, clock()).api_key
            adjust(
                connection,
                org_id,
                amount_cents=STARTING_CENTS,
                reason="A balance to begin with",
                key="chaos-start",
            )
    return keys


def _stores(links: Links, role: str, servers: Servers) -> dict[str, str]:
    """Where a role finds Postgres and Valkey: behind links of its own."""
    postgres = links.add(f"{role} > postgres", sockets_dir_of(servers.data_dir) / f".s.PGSQL.{PORT}")
    valkey = links.add(f"{role} > valkey", _valkey_socket(servers))
    return {
        "METERING_DATABASE_URL": f"postgresql://{APPLICATION_ROLE}@{HOST}:{postgres}/{DATABASE}?sslmode=disable",
        "METERING_REDIS_URL": f"redis://{HOST}:{valkey}/0",
    }


def _clock(calendar: Calendar, role: str) -> dict[str, str]:
    """A clock of the role's own: it can be wrong while all others are right."""
    return {ENVIRONMENT_VARIABLE: str(calendar.path_of(role))}


def _stripe(links: Links, role: str, stand_in: StandIn) -> dict[str, str]:
    port = links.add(f"{role} {TO_STRIPE}", (HOST, stand_in.port))
    return {
        "STRIPE_API_KEY": stand_in.api_key,
        "STRIPE_WEBHOOK_SECRET": stand_in.webhook_secret,
        "STRIPE_API_BASE": f"http://{HOST}:{port}",
    }


def _valkey_socket(servers: Servers) -> Path:
    return sockets_dir_of(servers.data_dir) / "valkey.sock"


def _admin_url(servers: Servers) -> str:
    return psycopg_url(make_url(servers.admin_database_url).set(database=DATABASE))


def _await_stand_in(data_dir: Path) -> StandIn:
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s:
        found = answering_stand_in(data_dir)
        if found is not None:
            return found
        time.sleep(0.1)
    raise CommandError(f"The stand-in for Stripe doesn't start; {data_dir / LOG} tells why.")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port

"""Real servers for all tests: each test process starts its own Postgres and Valkey, each test has a database of its own."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
import structlog
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine

from db.postgres.engine import make_engine
from metering.runtime.health import HEALTH
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import Servers, running
from tests.servers import execute_as_admin, lent_servers, make_template, named
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.api.site import Site

settings.register_profile(
    "metering",
    deadline=None,  # real servers on noisy machines
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("metering")

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _logs() -> None:
    """Only warnings, and to where this test's output goes: a command that ran in this process may have set up other logs."""
    structlog.reset_defaults()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


@pytest.fixture(autouse=True)
def _well() -> None:
    """What a test before made a server refuse is forgotten."""
    HEALTH.forget()


@dataclass(frozen=True)
class Database:
    """One test's database, as each kind of user sees it."""

    owner_url: str
    """As role metering_owner, whose tables they are."""
    url: str
    """As role metering_app, which the roles of the product connect as."""
    admin_url: str
    """As superuser: for damage that nobody else can do."""
    engine: Engine
    """Role metering_app, as a meter would connect."""


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """This test process's own Postgres and Valkey: it starts them, or was lent some that run."""
    with lent_servers() or running(tmp_path_factory.mktemp("servers")) as started:
        # No test here takes the machine's power away, and a process that is killed loses nothing that it has written.
        _sync_writes(started, "off")
        yield started


def _sync_writes(servers: Servers, on_or_off: str) -> None:
    """Have Postgres see to it that what it writes outlives a crash of the machine, or not."""
    for setting in ("full_page_writes", "fsync"):
        execute_as_admin(servers, f"ALTER SYSTEM SET {setting} = {on_or_off}")
    execute_as_admin(servers, "SELECT pg_reload_conf()")
    wait_until(lambda: execute_as_admin(servers, "SHOW fsync") == [(on_or_off,)], limit_s=20)


@pytest.fixture
def synced(servers: Servers) -> Iterator[None]:
    """This test process's Postgres as the embedded one is otherwise: it syncs what it writes."""
    _sync_writes(servers, "on")
    yield
    _sync_writes(servers, "off")


@pytest.fixture(scope="session")
def template_database(servers: Servers) -> str:
    """The name of a migrated database that tests' databases are copied from."""
    return make_template(servers)


def _make_database(servers: Servers, template: str) -> Iterator[Database]:
    name = f"test_{next(_numbers)}"
    execute_as_admin(
        servers, f"CREATE DATABASE {name} TEMPLATE {template} OWNER metering_owner STRATEGY file_copy"
    )
    url = named(servers.database_url, name)
    engine = make_engine(url, application_name="tests", pool_size=10, lock_timeout_ms=20_000)
    yield Database(
        named(servers.owner_database_url, name), url, named(servers.admin_database_url, name), engine
    )
    engine.dispose()
    execute_as_admin(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(servers: Servers, template_database: str) -> Iterator[Database]:
    """A migrated, empty database."""
    yield from _make_database(servers, template_database)


@pytest.fixture
def empty_database(servers: Servers) -> Iterator[Database]:
    """A database without any tables."""
    yield from _make_database(servers, "template0")


@pytest.fixture
def redis_url(servers: Servers) -> Iterator[str]:
    """This test process's Valkey, emptied."""
    client = connect_redis(servers.redis_url)
    client.flushall()
    yield servers.redis_url
    client.close()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of this test process's Valkey, emptied."""
    with connect_redis(redis_url) as client:
        yield client


@pytest.fixture
def site(standing_site: "Site", redis_url: str) -> "Site":
    """A served API with org 1, which has neither money nor a card, and nothing else."""
    standing_site.empty()
    return standing_site


@pytest.fixture(scope="session")
def standing_site(servers: Servers, template_database: str) -> "Iterator[Site]":
    """One served API for all tests of this process, as the last one left it."""
    from tests.api.site import make_site  # noqa: PLC0415 - it takes a second to load, and most tests need none
    from tests.payments.world import make_world  # noqa: PLC0415 - likewise

    with (
        contextmanager(_make_database)(servers, template_database) as database,
        connect_redis(servers.redis_url) as client,
        make_world(database, client) as world,
        make_site(database, servers.redis_url, world) as made,
    ):
        yield made


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A place for embedded servers of the test's own."""
    return tmp_path / "data"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What is expected to fail, in a line: those of localstripe are known and listed; any other would be said by name."""
    expected = terminalreporter.stats.get("xfailed", [])
    known = [
        report for report in expected if report.wasxfail.removeprefix("reason: ").startswith("localstripe ")
    ]
    for report in expected:
        if report not in known:
            terminalreporter.write_line(f"XFAIL {report.nodeid}: {report.wasxfail}")
    if known:
        terminalreporter.write_line(
            f"{len(known)} known differences of localstripe from Stripe, as tests/stripe_contract/differences.py lists them"
        )

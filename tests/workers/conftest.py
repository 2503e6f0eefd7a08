"""A database and a Valkey for meters to work on, with the orgs and tiers that the tests' events name."""

from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.connection import AbstractConnection
from structlog.testing import capture_logs

from db.postgres.engine import in_transaction
from tests.conftest import Database
from tests.workers.calls import prepare_ledger
from tests.workers.own_servers import OwnServers
from tests.workers.processes import Site


@pytest.fixture(autouse=True)
def said_inside_a_transaction(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What this process has said to Redis while its thread had a transaction open. Nothing, at a test's end."""
    said: list[bytes] = []
    send = AbstractConnection.send_packed_command

    # Here, because every command and every pipeline goes this way. Noted, not raised: a meter outlives what is raised.
    def note(connection: AbstractConnection, command: Any, check_health: bool = True) -> None:
        if in_transaction():
            said.append(command if isinstance(command, bytes) else b"".join(command))
        send(connection, command, check_health)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(AbstractConnection, "send_packed_command", note)
    yield said
    assert said == []


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What meters in this process have logged, from warnings upwards."""
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def site(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A database of the test's own, and this test process's Valkey."""
    with Site(database.url, redis_url, tmp_path) as made:
        prepare_ledger(made.engine)
        yield made


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    """Servers of a module's own, to be killed; a test may leave them dead."""
    with ExitStack() as stack:
        yield OwnServers(tmp_path_factory.mktemp("own"), stack)


@pytest.fixture
def own_site(own_servers: OwnServers, tmp_path: Path) -> Iterator[Site]:
    """A site on these servers, both running, with a database of the test's own."""
    servers = own_servers.start()
    with Site(own_servers.make_database(), servers.redis_url, tmp_path) as made:
        made.client.flushall()
        prepare_ledger(made.engine)
        yield made

"""PgBouncer, as Debian has it: in session mode everything works; in another mode nothing starts, and a sentence says why."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine, make_url, text

from db.postgres.blockers import end_blockers
from db.postgres.engine import driver_connection, make_engine
from db.postgres.schema import check_schema
from db.postgres.server_checks import UnfitServerError, check_server
from db.postgres.session import server_pid
from metering.sandbox.servers.embedded import Servers
from metering.sandbox.servers.postgres import PORT
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.external_servers.pgbouncer import PgBouncer, pooled
from tests.spine.billing import assert_sound, balances, event, prepare, price, push, run_meters

pytestmark = pytest.mark.long


def behind(bouncer: PgBouncer, database: Database) -> str:
    return bouncer.url("metering_app", str(make_url(database.url).database))


@pytest.fixture
def session_mode(tmp_path: Path, servers: Servers, database: Database) -> Iterator[Engine]:
    sockets_dir = Path(str(make_url(servers.database_url).query["host"]))
    with pooled(tmp_path / "pgbouncer", sockets_dir, PORT) as bouncer:
        url = behind(bouncer, database).replace("postgresql://", "postgresql+psycopg://")
        engine = make_engine(url, application_name="tests", pool_size=5, lock_timeout_ms=2_000)
        yield engine
        engine.dispose()


def test_in_session_mode_calls_are_billed(session_mode: Engine, redis_client: redis.Redis) -> None:
    check_schema(session_mode)
    prepare(session_mode, org_ids=[1, 2], prices=[price("bolt", "0.08")])
    push(redis_client, [event(call_id=number, org_id=1 + number % 2) for number in range(1, 201)])
    run_meters(session_mode, redis_client, meters=2)
    assert balances(session_mode) == {1: -1_600, 2: -1_600}
    assert_sound(session_mode)
    with session_mode.connect() as connection:
        assert connection.scalar(text("SHOW lock_timeout")) == "2s"
        assert connection.scalar(text("SHOW TimeZone")) == "UTC"


def test_in_session_mode_a_session_that_blocks_is_found(session_mode: Engine) -> None:
    """PgBouncer tells each client a process id of its own making: nobody at Postgres has it."""
    prepare(session_mode, org_ids=[1], prices=[])
    with session_mode.connect() as holding, session_mode.connect() as waiting:
        driver = driver_connection(waiting)
        assert server_pid(driver) != driver.info.backend_pid
        assert server_pid(driver) == waiting.scalar(text("SELECT pg_backend_pid()"))
        holding.execute(text("SELECT 1"))
        assert end_blockers(session_mode, driver) == []


@pytest.mark.parametrize("pool_mode", ["transaction", "statement"])
@pytest.mark.parametrize("pool_size", ["1", "20"])
def test_in_another_mode_nothing_starts(
    tmp_path: Path, servers: Servers, database: Database, redis_url: str, pool_mode: str, pool_size: str
) -> None:
    sockets_dir = Path(str(make_url(servers.database_url).query["host"]))
    more = {"default_pool_size": pool_size, "query_wait_timeout": "5"}
    with pooled(tmp_path / "pgbouncer", sockets_dir, PORT, pool_mode, more) as bouncer:
        url = behind(bouncer, database)
        engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"), application_name="tests")
        with pytest.raises(UnfitServerError, match="pool_mode be session"):
            check_server(engine)
        engine.dispose()
        more = {
            "STRIPE_API_KEY": "sk_test_x",
            "STRIPE_WEBHOOK_SECRET": "whsec_x",
            "METERING_HTTP_PORT": "0",  # whoever develops may have the usual one in use
        }
        cli = Cli({**os.environ, **more, "METERING_DATABASE_URL": url, "METERING_REDIS_URL": redis_url})
        for command in (["meter"], ["jobs"], ["api"], ["status"], ["migrate"]) if pool_size == "20" else []:
            ended = cli.process(*command)
            assert ended.returncode == 1, command
            assert b"pool_mode" in ended.stderr, (command, ended.stderr)
            assert b"Traceback" not in ended.stderr

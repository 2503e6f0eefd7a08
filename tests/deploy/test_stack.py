"""What docker-compose.yml starts, really started: its servers' flags, its roles' variables, its health checks."""

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import errors

from metering import __version__
from metering.runtime.clock import system_clock
from tests.deploy.composed import ROLES, ROOT, duration_s
from tests.deploy.stack import DEPLOY, LIMIT_S, PASSWORDS, Stack, free_port
from tests.waiting import wait_until

NO_ROLES_PASSWORD = ("POSTGRES_SUPERUSER_PASSWORD", "VALKEY_PASSWORD", "TELEPHONY_PASSWORD")
RESTORE = ROOT / "docs" / "how-to" / "backup-and-restore.md"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The servers, with the schema in place."""
    with Stack(tmp_path_factory.mktemp("compose") / "stack") as started:
        done = started.run("migrate")
        assert done.returncode == 0, done.stderr
        assert b"from schema none to" in done.stdout
        yield started


def connect(stack: Stack, user: str, password: str) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(
        host="127.0.0.1", port=stack.postgres_port, dbname="metering", user=user, password=password
    )


@pytest.mark.parametrize(
    ("user", "variable"),
    [
        ("metering_owner", "POSTGRES_OWNER_PASSWORD"),
        ("metering_app", "POSTGRES_APP_PASSWORD"),
        *((f"metering_{role}", f"{role.upper()}_PASSWORD") for role in ROLES),
    ],
)
def test_a_database_role_may_no_more_than_it_must(stack: Stack, user: str, variable: str) -> None:
    password = PASSWORDS[variable]
    with connect(stack, user, password) as connection:
        rights = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = %s",
            [user],
        ).fetchone()
        assert rights == (False,) * 5
        if user != "metering_owner":
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute("CREATE TABLE mine (id int)")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(stack, user, "not the password")


def test_the_owner_migrates_and_a_second_time_finds_nothing_to_do(stack: Stack) -> None:
    done = stack.run("migrate")
    assert done.returncode == 0, done.stderr
    assert b"already" in done.stdout
    password = PASSWORDS["POSTGRES_OWNER_PASSWORD"]
    with connect(stack, "metering_owner", password) as connection:
        owners = connection.execute(
            "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
    assert owners == [("metering_owner",)]


def test_text_is_ordered_by_postgres_itself(stack: Stack) -> None:
    with connect(stack, "metering_app", PASSWORDS["POSTGRES_APP_PASSWORD"]) as connection:
        row = connection.execute(
            "SELECT datlocprovider, datlocale, pg_encoding_to_char(encoding)"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()
        settings = connection.execute(
            "SELECT current_setting('shared_buffers'), current_setting('max_connections'), current_setting('fsync')"
        ).fetchone()
    assert row == ("b", "C.UTF-8", "UTF8")
    assert settings == ("256MB", "200", "on")


def test_valkey_keeps_what_it_takes_in_and_asks_for_the_password(stack: Stack) -> None:
    with stack.redis() as client:
        wanted = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
        found = {name: client.config_get(name)[name] for name in wanted}
    assert found == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(2**30),
        "maxmemory-policy": "noeviction",
    }


def test_postgres_is_healthy_only_when_it_answers_by_tcp(stack: Stack) -> None:
    done = stack.check_health("postgres", settings=by_tcp(stack))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        stack.check_health("postgres", settings=by_tcp(stack) | {"PGPORT": str(free_port())}).returncode != 0
    )


def test_postgres_is_not_healthy_before_it_is_set_up_to_its_end(stack: Stack) -> None:
    """The last that roles.sql does is to give the database to its owner: what was cut short has another one."""
    owner = ["-U", "postgres", "-d", "metering", "-c"]
    stack.psql("psql", *owner, "ALTER DATABASE metering OWNER TO postgres")
    try:
        done = stack.check_health("postgres", settings=by_tcp(stack))
    finally:
        stack.psql("psql", *owner, "ALTER DATABASE metering OWNER TO metering_owner")
    assert done.returncode == 1
    assert b"not set up to its end" in done.stdout
    assert stack.check_health("postgres", settings=by_tcp(stack)).returncode == 0


@pytest.mark.parametrize("variable", [name for name in PASSWORDS if name not in NO_ROLES_PASSWORD])
def test_roles_are_not_made_without_a_password(stack: Stack, tmp_path: Path, variable: str) -> None:
    """An empty one would be taken for none, and shut the role out."""
    name = variable.removeprefix("POSTGRES_").lower()
    for each in stack.secrets("postgres").iterdir():
        (tmp_path / each.name).write_text("" if each.name == name else each.read_text())
    with pytest.raises(subprocess.CalledProcessError) as raised:
        stack.psql(
            *("psql", "-U", "postgres", "-d", "metering", "-f", str(DEPLOY / "postgres" / "roles.sql")),
            secrets=tmp_path,
        )
    assert b"division by zero" in raised.value.stderr
    assert stack.run("migrate").returncode == 0


def by_tcp(stack: Stack) -> dict[str, str]:
    """How a program of Postgres's reaches it here, where the container's would take the socket."""
    password = PASSWORDS["POSTGRES_SUPERUSER_PASSWORD"]
    return {"PGHOST": "127.0.0.1", "PGPORT": str(stack.postgres_port), "PGPASSWORD": password}


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        ("PONG", True),
        ("LOADING Valkey is loading the dataset in memory", False),
        ("NOAUTH Authentication required.", False),
        ("", False),
    ],
)
def test_valkey_is_healthy_only_when_it_answers_pong(
    stack: Stack, tmp_path: Path, answer: str, healthy: bool
) -> None:
    # A stand-in, because no package of these tests carries valkey-cli: like the real one it ends with status 0 in any case.
    program = tmp_path / "valkey-cli"
    program.write_text(f'#!/bin/sh\ntest "$*" = ping && echo "{answer}"\nexit 0\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    done = stack.check_health("valkey", settings={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert (done.returncode == 0) == healthy


@pytest.mark.parametrize("role", ROLES)
def test_a_role_runs_is_healthy_and_stops_in_time(stack: Stack, role: str) -> None:
    def healthy() -> bool:
        # The proxy that a machine's Docker may be set up with must not be asked for what is in the container.
        proxy = f"http://127.0.0.1:{free_port()}"
        done = stack.check_health(
            role,
            metrics_port=running.metrics_port,
            http_port=running.http_port,
            settings={"http_proxy": proxy},
        )
        return done.returncode == 0

    with stack.started(role) as running:
        wait_until(lambda: healthy() or running.process.poll() is not None, limit_s=LIMIT_S)
        assert running.process.poll() is None, running.log()
        assert stack.check_health(role, metrics_port=free_port(), http_port=free_port()).returncode != 0
        if role == "api":
            described = httpx.get(
                f"http://127.0.0.1:{running.http_port}/openapi.json", timeout=LIMIT_S
            ).json()
            assert described["info"]["version"] == __version__
        status = running.stop(duration_s(stack.services[role]["stop_grace_period"]))
        assert status == 0, running.log()
        assert not healthy()


@pytest.mark.long
def test_a_call_is_billed_and_the_backup_brings_it_back(stack: Stack, tmp_path: Path) -> None:
    """The commands of docs/how-to/backup-and-restore.md, the one inside the container run here."""

    def metering(*command: str, on: Stack = stack, stdin: bytes = b"") -> bytes:
        done = on.run("operator", command, input=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def balance_cents(on: Stack = stack) -> int:
        return int(json.loads(metering("status", "--json", on=on))["balance_cents"])

    metering("org", "create", "Acme", "--id", "1")
    metering("adjust", "1", "--cents", "1000", "--reason", "First credit", "--key", "first")
    metering("tier", "set", "bolt", "0.08")
    event = {
        "call_id": 1,
        "org_id": 1,
        "tier": "bolt",
        "direction": "outbound",
        "duration_seconds": 75,
        "ended_at": system_clock().isoformat(),
    }
    metering("push", "-", stdin=json.dumps(event).encode())
    with stack.started("meter") as running:
        wait_until(lambda: balance_cents() == 984, limit_s=LIMIT_S)
        assert running.stop(duration_s(stack.services["meter"]["stop_grace_period"])) == 0

    dump, restore = re.findall(
        r"docker compose exec -T postgres (pg_\w+ [^<>\n]*?) ([<>]) (\S+)\n", RESTORE.read_text("utf-8")
    )
    assert (dump[1], restore[1]) == (">", "<")
    assert dump[2] == restore[2]
    backup = tmp_path / dump[2]
    with backup.open("wb") as file:
        stack.psql(*dump[0].split(), stdout=file)
    with Stack(tmp_path / "second") as second:
        with backup.open("rb") as file:
            second.psql(*restore[0].split(), stdin=file)
        assert b"already" in second.run("migrate").stdout
        assert balance_cents(second) == 984
        audit = json.loads(metering("audit", "--json", on=second))
        assert audit["passed"]
        assert audit["counts"]["transactions"] == 2
        with (
            connect(second, "metering_owner", PASSWORDS["POSTGRES_OWNER_PASSWORD"]) as connection,
            pytest.raises(errors.IntegrityConstraintViolation, match="append-only"),
        ):
            connection.execute("DELETE FROM transactions")

# The embedded servers are imported only where a URL is unset (docs/reference/settings.md).
"""The Postgres and the Redis that a command works with: those that the settings name, or the embedded ones."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import redis
from psycopg import ProgrammingError
from sqlalchemy import Engine, make_url
from sqlalchemy.exc import ArgumentError

from db.postgres.engine import make_engine, psycopg_url
from db.postgres.schema import check_schema, migrate
from metering import __version__
from metering.client.sentinel import is_sentinel_url, read_sentinel_url
from metering.console.errors import CommandError
from metering.console.operators import check_token
from metering.rules.operators import ROLE_NEEDED, OperatorRole
from metering.runtime.redis_connection import connect_redis
from metering.runtime.settings import Settings, read_settings

LOCK_TIMEOUT_MS: Final = 10_000
POOL_SIZE: Final = 2
"""Connections to Postgres; a role whose threads need more says so."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where Postgres and Redis are. A URL that wasn't asked for is empty."""

    data_dir: Path
    database_url: str
    owner_database_url: str
    """As the tables' owner. Equal to `database_url` where the settings name it."""
    redis_url: str
    embedded_database: bool
    embedded_redis: bool


@contextmanager
def located(*, start: bool = False, postgres: bool = True, valkey: bool = True) -> Iterator[Located]:
    """Find what the settings name; for what they leave out join the embedded servers, or with `start` start them.

    Raises SettingsError for bad settings, CommandError where nothing runs or can be started.
    """
    settings = read_settings()
    _check_urls(settings)
    embedded_postgres = postgres and settings.database_url is None
    embedded_valkey = valkey and settings.redis_url is None
    database_url = owner_url = settings.database_url or ""
    redis_url = settings.redis_url or ""
    with ExitStack() as stack:
        if embedded_postgres or embedded_valkey:
            servers = stack.enter_context(
                _embedded(settings.data_dir, start=start, postgres=embedded_postgres, valkey=embedded_valkey)
            )
            if embedded_postgres:
                database_url, owner_url = servers.database_url, servers.owner_database_url
            if embedded_valkey:
                redis_url = servers.redis_url
        yield Located(
            settings.data_dir, database_url, owner_url, redis_url, embedded_postgres, embedded_valkey
        )


@dataclass(frozen=True, slots=True)
class _Embedded:
    database_url: str
    owner_database_url: str
    redis_url: str


@contextmanager
def _embedded(data_dir: Path, *, start: bool, postgres: bool, valkey: bool) -> Iterator[_Embedded]:
    from metering.sandbox.servers.account import ServerError
    from metering.sandbox.servers.embedded import NothingRuns, joined, running

    enter = running if start else joined
    try:
        with ExitStack() as stack:
            try:
                servers = stack.enter_context(enter(data_dir, postgres=postgres, valkey=valkey))
            except OSError as error:
                raise CommandError(
                    f"METERING_DATA_DIR: {data_dir} can't be used ({error.strerror}): name a directory that you may write to."
                ) from error
            yield _Embedded(servers.database_url, servers.owner_database_url, servers.redis_url)
    except (NothingRuns, ServerError) as error:
        raise CommandError(str(error)) from error


@contextmanager
def open_database(*, command: str) -> Iterator[Engine]:
    """An engine for the database, disposed of at the end, for an operator's command.

    One that changes something has to ask `require_operator` as well. Raises SchemaMismatchError unless the database is at this
    program's schema, CommandError for an operator's token that is not good.
    """
    with (
        located(valkey=False) as found,
        engine_for(found.database_url, command=command, lock_timeout_ms=LOCK_TIMEOUT_MS) as engine,
    ):
        check_schema(engine)
        if ROLE_NEEDED[command] is OperatorRole.READ:
            check_token(engine)
        yield engine


@contextmanager
def engine_for(
    url: str, *, command: str, lock_timeout_ms: int = LOCK_TIMEOUT_MS, pool_size: int = POOL_SIZE
) -> Iterator[Engine]:
    """An engine that Postgres knows as `application_name` has it, disposed of at the end."""
    engine = make_engine(
        url,
        application_name=application_name(command),
        pool_size=pool_size,
        lock_timeout_ms=lock_timeout_ms,
    )
    try:
        yield engine
    finally:
        engine.dispose()


def application_name(command: str) -> str:
    """What Postgres knows a program's sessions by, in `pg_stat_activity`: command and version."""
    return f"metering {command}, {__version__}"


@contextmanager
def open_redis() -> Iterator[redis.Redis]:
    """A client for Redis. Nothing connects yet."""
    with located(postgres=False) as found, connect_redis(found.redis_url) as client:
        yield client


def prepare_database(found: Located) -> None:
    """Bring an embedded database to this program's schema; refuse another one that isn't at it (SchemaMismatchError)."""
    if found.embedded_database:
        with engine_for(found.owner_database_url, command="migrate", lock_timeout_ms=0) as engine:
            migrate(engine)
    else:
        with engine_for(found.database_url, command="up") as engine:
            check_schema(engine)


def _check_urls(settings: Settings) -> None:
    """Refuse URLs that no driver could read, without quoting them: drivers quote parts of what may be a password."""
    remedy = "(are `@`, `:`, `/` and the like in its password percent-encoded?)"
    if settings.database_url is not None:
        try:
            psycopg_url(make_url(settings.database_url))
        except (ArgumentError, ValueError, ProgrammingError):
            raise CommandError(f"METERING_DATABASE_URL is not a URL that can be read {remedy}.") from None
    if settings.redis_url is not None:
        try:
            connect_redis(
                settings.redis_url
            ).connection_pool.make_connection()  # only makes it ready to connect
        except (TypeError, ValueError):
            raise CommandError(f"METERING_REDIS_URL is not a URL that can be read {remedy}.") from None


def address(url: str) -> str:
    """Where a URL leads, without user, password and options: for people to read."""
    if is_sentinel_url(url):
        said = read_sentinel_url(url)
        return f"{said.name} (Sentinel: {', '.join(f'{host}:{port}' for host, port in said.hosts)})"
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    host = parts.hostname or options.get("host", [""])[0]
    if "," in host:
        ports = options.get("port", [""])[0].split(",")
        host = ",".join(f"{each}:{port}" for each, port in zip(host.split(","), ports, strict=True))
    port = f":{parts.port}" if parts.port else ""
    return f"{host}{port}{parts.path}"

"""The servers that tests run on, where they are lent: started once for many test processes, one after another.

A run of mutants starts hundreds of test processes, and starting Postgres takes longer than most tests.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy import make_url

from db.postgres.engine import make_engine
from db.postgres.schema import migrate
from metering.sandbox.servers.embedded import Servers, running
from metering.sandbox.servers.locks import opened, try_exclusive

LENT: Final = "METERING_TEST_SERVERS"
"""Names the folder in which each folder holds servers that run; who finds one free has it for himself."""
TEMPLATE: Final = "metering_template"


def named(url: str, database: str) -> str:
    """The URL of another database of the same server."""
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def execute_as_admin(servers: Servers, statement: str) -> list[tuple[object, ...]]:
    """Run a statement as superuser, outside of any transaction; give the rows, if it has some."""
    url = make_url(servers.admin_database_url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def make_template(servers: Servers) -> str:
    """The name of a migrated database that others are copied from; made unless it is there."""
    if not execute_as_admin(servers, f"SELECT 1 FROM pg_database WHERE datname = '{TEMPLATE}'"):  # noqa: S608 - a name of our own
        execute_as_admin(servers, f"CREATE DATABASE {TEMPLATE} OWNER metering_owner")
        engine = make_engine(named(servers.owner_database_url, TEMPLATE), application_name="tests")
        migrate(engine)
        engine.dispose()
    return TEMPLATE


def lent_servers() -> AbstractContextManager[Servers] | None:
    """The servers that were lent to this test process; None where it is to start its own."""
    folder = os.environ.get(LENT)
    return None if folder is None else _borrowed(Path(folder))


@contextmanager
def lend_servers(folder: Path, count: int) -> Iterator[None]:
    """Have servers for `count` test processes at a time run below `folder`, and lend them to those started meanwhile."""
    with ExitStack() as stack:
        for number in range(count):
            make_template(stack.enter_context(running(folder / str(number))))
        os.environ[LENT] = str(folder)
        stack.callback(os.environ.pop, LENT)
        yield


@contextmanager
def _borrowed(folder: Path) -> Iterator[Servers]:
    """Servers that nobody else has, without the databases that their last user left behind, if he was killed."""
    with ExitStack() as stack:
        descriptors = {
            each: stack.enter_context(opened(each.with_name(f"{each.name}.lock")))
            for each in sorted(folder.iterdir())
            if each.is_dir()
        }
        deadline_s = time.monotonic() + 60
        while (free := _take_free(descriptors)) is None:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"none of the servers below {folder} became free")
            time.sleep(0.05)
        servers = stack.enter_context(running(free))
        for (name,) in execute_as_admin(
            servers, "SELECT datname FROM pg_database WHERE datname LIKE 'test!_%' ESCAPE '!'"
        ):
            execute_as_admin(servers, f"DROP DATABASE {name} WITH (FORCE)")
        yield servers


def _take_free(descriptors: Mapping[Path, int]) -> Path | None:
    return next((folder for folder, descriptor in descriptors.items() if try_exclusive(descriptor)), None)

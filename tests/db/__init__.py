"""What the database's tests share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import NullPool, create_engine, make_url

from db.postgres.engine import driver_connection


def execute_as(url: str, *scripts: str, autocommit: bool = False) -> None:
    """Run SQL as the role that `url` names, in one transaction, or each by itself; errors are psycopg's own."""
    level: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
    with create_engine(url, poolclass=NullPool, **level).begin() as connection:
        for script in scripts:
            driver_connection(connection).execute(script.encode())


@contextmanager
def made_read_only(admin_url: str) -> Iterator[None]:
    """The database of that URL takes no writes while the block runs, as where a disk is full; all sessions in it end first."""
    url = make_url(admin_url).set(drivername="postgresql+psycopg")
    name = url.database
    elsewhere = url.set(database="postgres").render_as_string(hide_password=False)
    set_to = f"ALTER DATABASE {name} SET default_transaction_read_only = "
    end_all = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608 - our own words
    execute_as(elsewhere, set_to + "on")
    execute_as(elsewhere, end_all)
    try:
        yield
    finally:
        execute_as(elsewhere, set_to + "off")

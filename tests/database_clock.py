"""Postgres's clock in the tests' hands: it stands where they put it.

Processes decide by `metering_now()`; whoever owns the database can put another function in its place, and nobody else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from weakref import WeakKeyDictionary

import psycopg
from sqlalchemy import make_url

_dsns: WeakKeyDictionary[psycopg.Connection, str] = WeakKeyDictionary()
_OWN = """
CREATE TABLE IF NOT EXISTS test_clock (at timestamptz);
GRANT SELECT ON test_clock TO PUBLIC;
INSERT INTO test_clock SELECT NULL WHERE NOT EXISTS (SELECT FROM test_clock);
CREATE OR REPLACE FUNCTION metering_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT coalesce((SELECT at FROM public.test_clock), date_trunc('milliseconds', clock_timestamp()))
$$;
"""


@contextmanager
def own_database_clock(admin_url: str) -> Iterator[psycopg.Connection]:
    """Take Postgres's clock into one's hands; gives the connection by which it is set (`set_database_clock`)."""
    url = make_url(admin_url).set(drivername="postgresql")
    dsn = url.render_as_string(hide_password=False)
    admin = psycopg.connect(dsn, autocommit=True)
    _dsns[admin] = dsn
    try:
        admin.execute(_OWN)
        yield admin
    finally:
        admin.close()  # also where a test has had Postgres end it


def set_database_clock(admin: psycopg.Connection, at: datetime | None) -> None:
    """Let it be `at` for Postgres until told otherwise; None: as late as it is."""
    put = "UPDATE test_clock SET at = date_trunc('milliseconds', %s::timestamptz)"
    try:
        admin.execute(put, [at])
    except psycopg.OperationalError:  # a test has had Postgres end every connection
        with psycopg.connect(_dsns[admin], autocommit=True) as another:
            another.execute(put, [at])

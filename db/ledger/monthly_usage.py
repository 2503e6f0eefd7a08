"""What orgs have used of a tier in a month, on which prices with steps depend: counted with the debits, under the orgs' locks."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import psycopg
from sqlalchemy import Connection, Engine

from db.ledger.statements import FILL_USAGE, READ_USAGE
from db.postgres.arrays import bigints, texts
from db.postgres.engine import driver_connection, transaction
from db.postgres.exchange import exchange

Key = tuple[int, str, int]
"""Org, tier, month (`month_number`)."""
Usage = dict[Key, int]
"""Billable seconds. A key that is missing has no row: nothing was priced by steps yet."""


def month_number(at: datetime) -> int:
    """The month of an instant, in UTC: how many there were since the year 0."""
    at = at.astimezone(UTC)
    return at.year * 12 + at.month - 1


def key_columns(keys: Sequence[Key]) -> tuple[bytes, bytes, bytes]:
    """Keys as `db.ledger.statements` takes them."""
    return (
        bigints([org_id for org_id, _, _ in keys]),
        texts([tier for _, tier, _ in keys]),
        bigints([month for _, _, month in keys]),
    )


def usage_columns(usage: Usage) -> tuple[bytes, bytes, bytes, bytes]:
    """What is to be written."""
    keys = sorted(usage)
    return (*key_columns(keys), bigints([usage[key] for key in keys]))


def usage_of_rows(rows: Iterable[tuple[int, str, int, int]]) -> Usage:
    """What was read."""
    return {(org_id, tier, month): seconds for org_id, tier, month, seconds in rows}


def fill_usage(driver: psycopg.Connection, keys: Sequence[Key]) -> Usage:
    """What the ledger says was used, for keys that have no row."""
    [rows] = exchange(driver, [(FILL_USAGE, key_columns(keys))])
    return usage_of_rows(rows)


def read_usage(connection: Connection, org_id: int, tier: str, at: datetime) -> int:
    """What an org has used of a tier in the month of an instant, in billable seconds; from the ledger where there is no row."""
    key = (org_id, tier, month_number(at))
    driver = driver_connection(connection)
    [rows] = exchange(driver, [(READ_USAGE, key_columns([key]))])
    usage = usage_of_rows(rows) or fill_usage(driver, [key])
    return usage[key]


def read_usage_now(engine: Engine, org_id: int, tier: str, at: datetime) -> int:
    """The same, in a transaction of its own."""
    with transaction(engine) as connection:
        return read_usage(connection, org_id, tier, at)

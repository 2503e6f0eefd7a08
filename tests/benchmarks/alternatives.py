# ruff: noqa: T201 - a table on the terminal is the point
"""What other ways of doing a batch would cost: `python -m tests.benchmarks.alternatives [BATCHES]`.

The ledger's transaction, commit included, over batches of 2,000 calls of 1,000 orgs, on embedded servers of its own; each
alternative changes one thing. Each round goes through all of them, so that a busy machine slows all alike; the median of each is
compared with that of the program as it is. A last pair reads the stream with redis-py's parser in C (hiredis) and in Python.
"""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from unittest.mock import patch

import psycopg
import redis
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryLoader
from redis._parsers import _HiredisParser, _RESP2Parser
from sqlalchemy import text

from db.ledger import post_calls as ledger
from db.ledger.debit_rows import COLUMNS
from db.ledger.post_calls import BalanceChange, PricedCall, post_calls
from db.ledger.price_book import load_price_book
from db.ledger.statements import COPY_DEBITS
from db.models import Kind
from db.postgres.engine import transaction
from db.postgres.exchange import Row, Statement, exchange
from metering.runtime.names import STREAM
from metering.trials.bench.fixture import Fixture, make_orgs, making_fixture
from metering.trials.event_generator import events, fill
from workers.batch import parse_entries, price_entries
from workers.stream import Entry

ORGS = 1_000
BATCH = 2_000
ROUNDS = 5
BATCHES = 10
READS = 20

_COLUMNS = ", ".join(COLUMNS)
_TYPES = [
    *("int8", "timestamptz", "int8", "text", "int8", "int8", "int8", "timestamptz"),
    *("int8", "int8", "int8", "int8", "int8", "int8", "text", "text", "text", "text"),
    *("int8", "text"),
    "text",  # metadata: on the wire `json` is its text, which psycopg's own type would wrap into one more JSON string
]
_CALLS = count(1)


def _rows(
    debits: Sequence[PricedCall], accounts: dict[int, BalanceChange], changed: dict[int, BalanceChange]
) -> Iterator[tuple[object, ...]]:
    """The debits' rows as values."""
    for call in debits:
        event, price, charge = call.event, call.price, call.charge
        assert price is not None
        assert charge is not None
        account = changed[event.org_id] = accounts[event.org_id]
        account.balance_cents -= charge.amount_cents
        account.transaction_count += 1
        yield (
            *(account.balance_cents, account.posted_at, event.org_id, Kind.DEBIT.value, -charge.amount_cents),
            *(event.call_id, event.duration_us, event.ended_at, charge.billable_seconds),
            *(price.rate_microusd_per_minute, price.increment_first_s, price.increment_next_s),
            *(price.minimum_s, price.connect_fee_microusd, charge.description, call.stream_id),
            *(event.tier, event.direction, event.phone_number_id, event.phone_number_value),
            None if event.metadata == "{}" else event.metadata,
        )


def by_insert(
    driver: psycopg.Connection, debits: Sequence[PricedCall], accounts: dict[int, BalanceChange]
) -> dict[int, BalanceChange]:
    """INSERT of arrays."""
    changed: dict[int, BalanceChange] = {}
    columns = [list(column) for column in zip(*_rows(debits, accounts, changed), strict=True)]
    arrays = ", ".join(f"%b::{kind}[]" for kind in _TYPES)
    selected = _COLUMNS.replace("metadata", "metadata::json")
    statement = (
        f"INSERT INTO transactions ({_COLUMNS}) SELECT {selected} FROM unnest({arrays}) AS new ({_COLUMNS})"  # noqa: S608
    )
    driver.execute(statement.encode(), columns)
    return changed


def by_text_copy(
    driver: psycopg.Connection, debits: Sequence[PricedCall], accounts: dict[int, BalanceChange]
) -> dict[int, BalanceChange]:
    """COPY, with values as text."""
    changed: dict[int, BalanceChange] = {}
    with driver.cursor() as cursor, cursor.copy(COPY_DEBITS.replace("(FORMAT BINARY)", "").encode()) as copy:
        for row in _rows(debits, accounts, changed):
            copy.write_row(row)
    return changed


def by_psycopgs_rows(
    driver: psycopg.Connection,
    debits: Sequence[PricedCall],
    accounts: dict[int, BalanceChange],
    table: str = "transactions",
) -> dict[int, BalanceChange]:
    """COPY in binary, with psycopg's own writer of rows."""
    changed: dict[int, BalanceChange] = {}
    with driver.cursor() as cursor, cursor.copy(COPY_DEBITS.replace("transactions", table).encode()) as copy:
        copy.set_types(_TYPES)
        for row in _rows(debits, accounts, changed):
            copy.write_row(row)
    return changed


def by_temporary_table(
    driver: psycopg.Connection, debits: Sequence[PricedCall], accounts: dict[int, BalanceChange]
) -> dict[int, BalanceChange]:
    """COPY into a temporary table, from there into the ledger."""
    driver.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS incoming (LIKE transactions INCLUDING IDENTITY) ON COMMIT DELETE ROWS"
    )
    changed = by_psycopgs_rows(driver, debits, accounts, "incoming")
    driver.execute(f"INSERT INTO transactions ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming".encode())  # noqa: S608
    return changed


def one_by_one(
    connection: psycopg.Connection, asked: Sequence[tuple[Statement, Sequence[bytes]]]
) -> list[list[Row]]:
    """Each statement by itself."""
    return [rows for each in asked for rows in exchange(connection, [each])]


def by_psycopgs_pipeline(
    connection: psycopg.Connection, asked: Sequence[tuple[Statement, Sequence[bytes]]]
) -> list[list[Row]]:
    """psycopg's own way of asking several things at once."""
    cursors = [psycopg.RawCursor(connection) for _ in asked]
    with connection.pipeline():
        for cursor, (statement, values) in zip(cursors, asked, strict=True):
            cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
            for kind in set(statement.types):
                cursor.adapters.register_dumper(bytes, _dumper(kind))
            cursor.execute(statement.text.encode(), values, binary=True)
    return [cursor.fetchall() if cursor.description else [] for cursor in cursors]


def _dumper(kind: str) -> type[Dumper]:
    """How bytes go as they are, as an array of that type."""
    base = kind.removesuffix("[]")
    members = {
        "format": Format.BINARY,
        "oid": psycopg.adapters.types[base].array_oid,
        "dump": lambda _, packed: packed,
    }
    return type("Packed", (Dumper,), members)


@contextmanager
def owners(fixture: Fixture, before: str, after: str) -> Iterator[None]:
    """Something done to the schema, and undone."""
    with fixture.owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in before.split(";"):
            connection.execute(text(statement))
        yield
        for statement in after.split(";"):
            connection.execute(text(statement))


def ways(fixture: Fixture) -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """Each way by its name; the first is the program as it is."""
    return {
        "as it is": nullcontext,
        "COPY by psycopg's own writer": partial(patch.object, ledger, "_write_debits", by_psycopgs_rows),
        "INSERT of arrays instead of COPY": partial(patch.object, ledger, "_write_debits", by_insert),
        "COPY of text instead of binary": partial(patch.object, ledger, "_write_debits", by_text_copy),
        "COPY into a temporary table first": partial(
            patch.object, ledger, "_write_debits", by_temporary_table
        ),
        "calls in the order in which they came": partial(patch.object, ledger, "_ORG_ID", lambda _: 0),
        "a round trip for each statement": partial(patch.object, ledger, "exchange", one_by_one),
        "psycopg's pipeline": partial(patch.object, ledger, "exchange", by_psycopgs_pipeline),
        "accounts packed full (fillfactor 100)": partial(
            owners,
            fixture,
            "ALTER TABLE accounts SET (fillfactor = 100); VACUUM FULL accounts",
            "ALTER TABLE accounts SET (fillfactor = 50); VACUUM FULL accounts",
        ),
        "one more index, over org and time": partial(
            owners,
            fixture,
            "CREATE INDEX one_more ON transactions (org_id, created_at)",
            "DROP INDEX one_more",
        ),
    }


def batch_us(fixture: Fixture, batches: int) -> float:
    """Microseconds per event of so many new batches, from parsed events to the commit."""
    loads = []
    for _ in range(batches):
        first = next(_CALLS) * 10_000_000
        raw = [each.encode() for each in events(BATCH, orgs=ORGS, first_call_id=first, seed=first)]
        loads.append(parse_entries([Entry(f"1-{number}", each) for number, each in enumerate(raw)]))
    with transaction(fixture.engine) as connection:
        book = load_price_book(connection)
    started_s = time.perf_counter()
    for parsed in loads:
        priced = price_entries(parsed, book)
        with transaction(fixture.engine) as connection:
            post_calls(connection, priced.calls, priced.rejected, price_book_version=book.version)
    return (time.perf_counter() - started_s) * 1e6 / (batches * BATCH)


def read_us(url: str, parser: type) -> float:
    """Microseconds per event read from the stream."""
    with redis.Redis(connection_pool=redis.ConnectionPool.from_url(url, parser_class=parser)) as client:
        client.xrange(STREAM, count=BATCH)
        started_s = time.perf_counter()
        for _ in range(READS):
            client.xrange(STREAM, count=BATCH)
        return (time.perf_counter() - started_s) * 1e6 / (READS * BATCH)


def main() -> None:
    """Measure all, and print a table."""
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else BATCHES
    data_dir = Path(tempfile.mkdtemp(prefix="metering-alternatives-"))
    try:
        with making_fixture(data_dir) as fixture:
            make_orgs(fixture.owner, range(1, ORGS + 1))
            batch_us(fixture, batches)  # warm
            took: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                for name, way in ways(fixture).items():
                    with way():
                        took.setdefault(name, []).append(batch_us(fixture, batches))
            print(
                "| the ledger's transaction | us per event | to the program as it is |\n| --- | ---: | ---: |"
            )
            show(took)
            fill(fixture.client, events(BATCH, orgs=ORGS, first_call_id=1, seed=1), lambda _: None)
            read: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                for name, parser in (("hiredis, as it is", _HiredisParser), ("Python", _RESP2Parser)):
                    read.setdefault(name, []).append(read_us(fixture.servers.redis_url, parser))
            print("\n| reading the stream | us per event | to the program as it is |\n| --- | ---: | ---: |")
            show(read)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def show(took: dict[str, list[float]]) -> None:
    """A row for each, compared with the first."""
    medians = {name: statistics.median(each) for name, each in took.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"| {name} | {median:.1f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()

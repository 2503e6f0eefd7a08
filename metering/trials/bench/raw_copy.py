"""The limit: rows like the ledger's written by Postgres alone."""

import time
from typing import Final

import psycopg
from sqlalchemy import make_url

from db.postgres.engine import psycopg_url
from metering.trials.bench.rate import Rate

_ROWS_OUT: Final = (
    "COPY (SELECT * FROM transactions WHERE kind = 'debit' LIMIT 200000) TO STDOUT (FORMAT BINARY)"
)


def measure_raw_copy(owner_url: str) -> Rate:
    """COPY of debits that the ledger holds into an empty table with the same columns, checks and indexes, in one transaction.

    What it leaves out of a debit's work: the lock, the look for duplicates, the balance, small commits, reading, pricing.
    """
    with psycopg.connect(psycopg_url(make_url(owner_url))) as connection:
        connection.execute("CREATE TABLE bench_copy (LIKE transactions INCLUDING ALL)")
        with connection.cursor().copy(_ROWS_OUT) as out:
            data = [bytes(block) for block in out]
        connection.commit()
        started_s = time.monotonic()
        with connection.cursor() as cursor:
            with cursor.copy("COPY bench_copy FROM STDIN (FORMAT BINARY)") as copy:
                for block in data:
                    copy.write(block)
            rows = cursor.rowcount
        connection.commit()
        took_s = time.monotonic() - started_s
        connection.execute("DROP TABLE bench_copy")
    return Rate(rows, took_s)

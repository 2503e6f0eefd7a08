"""Where in an org's list a transaction stands, without walking there.

Position n is the org's n-th transaction, counted from its first. Every `STEP`-th has a mark (db/models/transaction_mark.py), so
no question reads more index entries than lie between two marks. The hot path writes none: who asks for a place beyond the last
mark writes those that are missing first, once for all who come after.
"""

from typing import Final

import structlog
from psycopg import errors
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute

from db.models import Transaction, TransactionMark
from db.postgres.engine import transaction

STEP: Final = 10_000
"""So many transactions lie between two marks: what is walked over at most, half a millisecond."""
MARKS_AT_ONCE: Final = 50
"""How many are written in one transaction: so that each is short, and what is done stays done if the next one fails."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_STANDING: Final = text("""
    SELECT accounts.transaction_count, mark.position, mark.transaction_id
    FROM accounts LEFT JOIN LATERAL (
        SELECT position, transaction_id FROM transaction_marks AS marks
        WHERE marks.org_id = accounts.org_id ORDER BY position DESC LIMIT 1
    ) AS mark ON true
    WHERE accounts.org_id = :org_id
""")

_WRITE: Final = text("""
    WITH RECURSIVE marking (position, transaction_id) AS (
        SELECT CAST(:position AS bigint), CAST(:transaction_id AS bigint)
        UNION ALL
        SELECT position + :step, (
            SELECT id FROM transactions WHERE org_id = :org_id AND id > marking.transaction_id
            ORDER BY org_id, id OFFSET :step - 1 LIMIT 1
        )
        FROM marking WHERE position + :step <= :up_to
    )
    INSERT INTO transaction_marks (org_id, position, transaction_id)
    SELECT :org_id, position, transaction_id FROM marking
    WHERE position > :position AND transaction_id IS NOT NULL
    ORDER BY position
    ON CONFLICT DO NOTHING
""")


def write_marks(engine: Engine, org_id: int) -> None:
    """Write the marks that an org's list is without, in transactions of their own.

    In a database that is read-only now none can be written: then places are found by walking from the last one there is.
    """
    try:
        while _write_some(engine, org_id):
            pass
    except DBAPIError as error:
        if not isinstance(error.orig, errors.ReadOnlySqlTransaction):
            raise
        log.warning("places in a list of transactions can't be marked: the database is read-only")


def _write_some(engine: Engine, org_id: int) -> bool:
    """Write some of them; give whether more are missing."""
    with transaction(engine) as connection:
        standing = connection.execute(_STANDING, {"org_id": org_id}).one_or_none()
        if standing is None:
            return False
        count, position, transaction_id = standing[0], standing[1] or 0, standing[2] or 0
        if count - position < STEP:
            return False
        up_to = min(count, position + MARKS_AT_ONCE * STEP)
        connection.execute(
            _WRITE,
            {
                "org_id": org_id,
                "position": position,
                "transaction_id": transaction_id,
                "step": STEP,
                "up_to": up_to,
            },
        )
    return bool(count - up_to >= STEP)


def count_before(connection: Connection, org_id: int, transaction_id: int) -> int:
    """How many of an org's transactions have a lower id."""
    position, marked_id = _last_mark(connection, org_id, TransactionMark.transaction_id, transaction_id)
    between = select(func.count()).where(
        Transaction.org_id == org_id, Transaction.id > marked_id, Transaction.id < transaction_id
    )
    return position + (connection.scalar(between) or 0)


def id_at(connection: Connection, org_id: int, position: int) -> int | None:
    """The id of an org's n-th transaction, n being 1 or more; None if it has fewer."""
    before, marked_id = _last_mark(connection, org_id, TransactionMark.position, position)
    walked = (
        select(Transaction.id)
        .where(Transaction.org_id == org_id, Transaction.id > marked_id)
        .order_by(Transaction.org_id, Transaction.id)
        .offset(position - before - 1)
        .limit(1)
    )
    return connection.scalar(walked)


def _last_mark(
    connection: Connection, org_id: int, column: InstrumentedAttribute[int], below: int
) -> tuple[int, int]:
    """Position and id of the last mark whose `column` is below that; zeros, which come before the first, if there is none."""
    found = connection.execute(
        select(TransactionMark.position, TransactionMark.transaction_id)
        .where(TransactionMark.org_id == org_id, column < below)
        .order_by(TransactionMark.org_id.desc(), column.desc())
        .limit(1)
    ).one_or_none()
    return (0, 0) if found is None else (found.position, found.transaction_id)

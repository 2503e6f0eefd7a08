"""Statements that are asked together and answered together, each prepared once on its connection, all values in binary.

psycopg's pipeline turns to the socket for every statement, and hands over the interpreter's lock each time: some thirty times for
a batch of calls, and on a busy machine each is a wait (docs/explanation/performance.md). Here one turn asks, and a few take the
answers.
"""

import select
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
import psycopg
from psycopg import errors
from psycopg.abc import AdaptContext
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.types.numeric import Int8BinaryLoader

Row = tuple[Any, ...]


class Statement(msgspec.Struct, frozen=True):
    """A statement as Postgres takes it: $1, $2, ... for values, of the types named."""

    name: str
    """No two have the same."""
    text: str
    types: tuple[str, ...] = ()
    """Such as `int8[]`: packed by `db.postgres.arrays`."""


BEGIN: Final = Statement("begin", "BEGIN ISOLATION LEVEL READ COMMITTED")
COMMIT: Final = Statement("commit", "COMMIT")

_prepared: Final[WeakKeyDictionary[psycopg.Connection, set[str]]] = WeakKeyDictionary()
"""By connection: the names of the statements that it knows."""


class _Loading(AdaptContext):
    """How values come: times as Postgres keeps them (`db.postgres.instants`), because nobody looks at most of them."""

    adapters = AdaptersMap(psycopg.adapters)
    connection = None


_Loading.adapters.register_loader("timestamptz", Int8BinaryLoader)


def exchange(
    connection: psycopg.Connection, asked: Sequence[tuple[Statement, Sequence[bytes]]]
) -> list[list[Row]]:
    """Ask all of it, in the connection's transaction, which is begun if there is none; give the rows of each.

    Postgres takes one after the other, each on a snapshot of its own. Raises psycopg.Error for the first that fails: none after
    it has run, and the transaction can only be rolled back.
    """
    begins = connection.info.transaction_status == TransactionStatus.IDLE
    if begins:
        asked = [(BEGIN, ()), *asked]
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    try:
        prepares = _ask(pgconn, asked, _prepared.setdefault(connection, set()))
        results = _answers(pgconn)
        pgconn.exit_pipeline_mode()
    except BaseException:
        connection.close()  # nobody knows what it would answer next
        raise
    answers: list[list[Row]] = []
    for result, prepared in zip(results, prepares, strict=True):
        if result.status == ExecStatus.FATAL_ERROR:
            error = errors.error_from_result(result)
            if isinstance(error, errors.InvalidSqlStatementName):
                _prepared[connection].clear()  # somebody had it forget them
            raise error
        if prepared is not None:
            _prepared[connection].add(prepared)
        else:
            answers.append(_rows(result))
    return answers[1:] if begins else answers


def _ask(
    pgconn: PGconn, asked: Sequence[tuple[Statement, Sequence[bytes]]], known: set[str]
) -> list[str | None]:
    """Send it all; tell of each answer to come whether it is only that of preparing the statement of that name."""
    prepares: list[str | None] = []
    for statement, values in asked:
        name = statement.name.encode()
        if statement.name not in known and statement.name not in prepares:
            types = [_type_oid(each) for each in statement.types]
            pgconn.send_prepare(name, statement.text.encode(), types)
            prepares.append(statement.name)
        pgconn.send_query_prepared(name, values, [Format.BINARY] * len(values), Format.BINARY)
        prepares.append(None)
    pgconn.pipeline_sync()
    poller = select.poll()
    poller.register(pgconn.socket, select.POLLIN | select.POLLOUT)
    while pgconn.flush():
        for _, ready in poller.poll():
            if ready & ~select.POLLOUT:
                pgconn.consume_input()  # it may want to be heard before it listens again
    return prepares


def _answers(pgconn: PGconn) -> list[PGresult]:
    """Everything up to the end of the pipeline."""
    poller = select.poll()
    poller.register(pgconn.socket, select.POLLIN)
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            poller.poll()
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:  # the end of one statement's answer
            if pgconn.status != ConnStatus.OK:
                raise psycopg.OperationalError("the connection to Postgres was lost")
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)


def _rows(result: PGresult) -> list[Row]:
    if not result.ntuples:
        return []
    transformer = Transformer(_Loading())
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _type_oid(name: str) -> int:
    base, _, array = name.partition("[")
    found = psycopg.adapters.types[base]
    return found.array_oid if array else found.oid

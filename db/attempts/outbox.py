"""The outbox of signals about auto-reloads: written with their cause, read to be published, deleted once they are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Row, insert

from db.attempts.statements import DELETE_SIGNAL, SIGNALS_BY_KEY, SIGNALS_LEFT
from db.models import PendingSignal
from db.postgres.arrays import array
from db.postgres.engine import transaction
from metering.rules.times import format_time

SUCCEEDED_SIGNAL: Final = "auto_reload.succeeded"
FAILED_SIGNAL: Final = "auto_reload.failed"
SKIPPED_SIGNAL: Final = "auto_reload.skipped"

SignalKey = tuple[int, int]
"""An org, and the id of one of its signals."""


@dataclass(frozen=True, slots=True)
class StoredSignal:
    """A signal that may not have been said yet."""

    org_id: int
    id: int
    message: str
    """JSON. The same at every reading, to the byte."""

    @property
    def key(self) -> SignalKey:
        """What it is deleted by."""
        return self.org_id, self.id


def add_signal(
    connection: Connection, org_id: int, type_: str, fields: Mapping[str, object], at: datetime
) -> int:
    """Write a signal in the caller's transaction, the one of its cause, under the org's lock; give its id.

    So it is said, after the commit, just if its cause has happened; at least once, and its id lets a listener drop repeats. In
    an org ids rise in the order of their causes.
    """
    body = {"type": type_, "org_id": org_id, **fields, "at": format_time(at)}
    return connection.execute(
        insert(PendingSignal)
        .values(org_id=org_id, type=type_, body=msgspec.json.encode(body).decode(), created_at=at)
        .returning(PendingSignal.id)
    ).scalar_one()


def read_signals(engine: Engine, keys: Iterable[SignalKey]) -> list[StoredSignal]:
    """Those of `keys` that are still there, in the order of their ids."""
    wanted = list(keys)
    if not wanted:
        return []
    org_ids, ids = zip(*wanted, strict=True)
    return _read(engine, SIGNALS_BY_KEY, {"org_ids": array(org_ids), "ids": array(ids)})


def overdue_signals(engine: Engine, *, age: timedelta, after: int = 0, limit: int) -> list[StoredSignal]:
    """Signals older than `age` that nobody has said, or deleted after saying them: those with the next ids past `after`."""
    return _read(engine, SIGNALS_LEFT, {"age": age, "after": after, "limit": limit})


def delete_signals(engine: Engine, keys: Iterable[SignalKey]) -> None:
    """Forget signals that were said."""
    # One after the other and sorted, so that two who said the same ones can't wait for each other.
    said = [{"org_id": org_id, "id": signal_id} for org_id, signal_id in sorted(keys)]
    if said:
        with transaction(engine) as connection:
            connection.execute(DELETE_SIGNAL, said)


def _read(engine: Engine, statement: Any, parameters: Mapping[str, object]) -> list[StoredSignal]:
    with transaction(engine) as connection:
        return [_stored(row) for row in connection.execute(statement, parameters)]


def _stored(row: Row[Any]) -> StoredSignal:
    """The id isn't known before the row is written, so it is put in here, behind type and org."""
    body: dict[str, object] = msgspec.json.decode(row.body)
    message = {"type": body.pop("type"), "org_id": body.pop("org_id"), "id": row.id, **body}
    return StoredSignal(row.org_id, row.id, msgspec.json.encode(message).decode())

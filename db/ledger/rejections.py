"""Dead letters, events that could not be billed: keeping, listing and replaying them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from sqlalchemy import Connection, func, select, update
from sqlalchemy.orm import Session

from db.ledger.statements import KEEP_REJECTED
from db.models import RejectedEvent
from metering.rules.rejections import Reason, Rejection

MAX_KEPT_BYTES: Final = 64 * 1024
"""How much is kept of an event that is too large (docs/reference/call-events.md#rejected-events)."""


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """A stream entry that could not be billed, and why."""

    stream_id: str
    raw: bytes
    rejection: Rejection


def keep_rejected(driver: psycopg.Connection, entries: Sequence[RejectedEntry]) -> None:
    """Keep each entry as the bytes that came, in the caller's transaction."""
    with driver.cursor() as cursor:
        cursor.executemany(
            KEEP_REJECTED,
            [
                (
                    entry.stream_id,
                    entry.rejection.reason.value,
                    entry.rejection.detail,
                    entry.raw[:MAX_KEPT_BYTES] if entry.rejection.reason is Reason.TOO_LARGE else entry.raw,
                    len(entry.raw),
                    hashlib.sha256(entry.raw).digest(),
                )
                # Two meters that hold the same entries must not wait for each other's rows in opposite orders.
                for entry in sorted(entries, key=lambda entry: entry.stream_id)
            ],
        )


def list_rejected(
    connection: Connection,
    *,
    limit: int,
    offset: int = 0,
    reason: Reason | None = None,
    waiting_only: bool = False,
) -> tuple[list[RejectedEvent], int]:
    """Rejected events, oldest first, with the number that there are in all.

    `waiting_only` leaves out those that were replayed.
    """
    matching = select(RejectedEvent)
    if reason is not None:
        matching = matching.where(RejectedEvent.reason == reason.value)
    if waiting_only:
        matching = matching.where(RejectedEvent.replayed_at.is_(None))
    total = connection.scalar(select(func.count()).select_from(matching.subquery())) or 0
    rows = Session(connection).scalars(matching.order_by(RejectedEvent.id).limit(limit).offset(offset))
    return list(rows), total


def mark_replayed(connection: Connection, replayed_as: dict[int, str], at: datetime) -> None:
    """Note that each event, by id, was pushed again as the given stream entry. The rows stay."""
    for rejected_id, stream_id in replayed_as.items():
        connection.execute(
            update(RejectedEvent)
            .where(RejectedEvent.id == rejected_id)
            .values(replayed_at=at, replayed_as=stream_id)
        )

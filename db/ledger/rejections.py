"""Dead letters, events that could not be billed: keeping, listing, replaying and dismissing them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.orm import Session

from db.ledger.statements import KEEP_REJECTED
from db.models import RejectedEvent
from db.models.rejected_event import NAMED_CALL, NAMED_ORG
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

    `waiting_only` leaves out those that were replayed or dismissed.
    """
    matching = select(RejectedEvent)
    if reason is not None:
        matching = matching.where(RejectedEvent.reason == reason.value)
    if waiting_only:
        matching = matching.where(RejectedEvent.replayed_at.is_(None), RejectedEvent.dismissed_at.is_(None))
    total = connection.scalar(select(func.count()).select_from(matching.subquery())) or 0
    rows = Session(connection).scalars(matching.order_by(RejectedEvent.id).limit(limit).offset(offset))
    return list(rows), total


def list_named(
    connection: Connection, org_id: int, *, limit: int, call_id: int | None = None
) -> list[RejectedEvent]:
    """The newest rejected events that name an org, or one of its calls, as far as their bytes say."""
    named = select(RejectedEvent).where(text(f"{NAMED_ORG} = :org").bindparams(org=str(org_id)))
    if call_id is not None:
        named = named.where(text(f"{NAMED_CALL} = :call").bindparams(call=str(call_id)))
    return list(Session(connection).scalars(named.order_by(RejectedEvent.id.desc()).limit(limit)))


class DismissalError(Exception):
    """A rejected event that can't be dismissed. The text says why, and what to do."""


def dismiss(connection: Connection, rejected_id: int, reason: str) -> RejectedEvent | None:
    """Note that an event will never be billed, in the caller's transaction; give it, or None where that isn't new. The row stays.

    Raises DismissalError for one that isn't there, was replayed, or was dismissed for another reason.
    """
    event = Session(connection).get(RejectedEvent, rejected_id, with_for_update={"key_share": True})
    if event is None:
        raise DismissalError("there is no rejected event with this id")
    if event.replayed_at is not None:
        raise DismissalError(
            f"it was replayed, as {event.replayed_as}: what became of it, `metering call show` tells"
        )
    if event.dismissed_at is not None:
        if event.dismissed_reason == reason:
            return None
        raise DismissalError(f"it was dismissed before: {event.dismissed_reason}")
    connection.execute(
        update(RejectedEvent)
        .where(RejectedEvent.id == rejected_id)
        .values(dismissed_at=func.clock_timestamp(), dismissed_reason=reason)
    )
    return event


def mark_replayed(connection: Connection, replayed_as: dict[int, str], at: datetime) -> None:
    """Note that each event, by id, was pushed again as the given stream entry. The rows stay."""
    for rejected_id, stream_id in replayed_as.items():
        connection.execute(
            update(RejectedEvent)
            .where(RejectedEvent.id == rejected_id)
            .values(replayed_at=at, replayed_as=stream_id)
        )

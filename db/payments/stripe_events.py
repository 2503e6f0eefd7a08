"""Stripe's events: each takes effect once; and how far their list has been read."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, case, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from db.models import StripeCursor, StripeEvent
from db.postgres.clock import read_clock
from db.postgres.engine import transaction

_EVENTS: Final = "events"

# As one array: after a long outage there are more of them than a statement takes parameters.
_KNOWN: Final = text("SELECT id FROM stripe_events WHERE id = ANY(CAST(:ids AS text[]))")


@dataclass(frozen=True, slots=True)
class EventRef:
    """Which event a transaction is the effect of."""

    id: str
    type: str
    created_at: datetime


def is_event_known(engine: Engine, event_id: str) -> bool:
    """Whether the event has had its effect."""
    with transaction(engine) as connection:
        return connection.scalar(select(StripeEvent.id).where(StripeEvent.id == event_id)) is not None


def known_events(engine: Engine, event_ids: Collection[str]) -> set[str]:
    """Which of these events have had their effect."""
    with transaction(engine) as connection:
        return set(connection.scalars(_KNOWN, {"ids": list(event_ids)}))


def keep_event(connection: Connection, event: EventRef, outcome: str) -> bool:
    """Write an event down, in the transaction of its effect. False if it was there: the effect has happened before."""
    statement = (
        insert_unless_there(StripeEvent)
        .values(
            id=event.id,
            type=event.type,
            created_at=event.created_at,
            received_at=func.metering_now(),
            outcome=outcome,
        )
        .on_conflict_do_nothing()
        .returning(StripeEvent.id)
    )
    return connection.scalar(statement) is not None


def claim_event_list(engine: Engine, *, every: timedelta) -> datetime | None:
    """Take the reading of Stripe's event list upon oneself, unless somebody did so less than `every` ago.

    Gives the time up to which events have been seen to. An installation that has never read begins now: it had no customers.
    """
    with transaction(engine) as connection:
        now = read_clock(connection)
        connection.execute(
            insert_unless_there(StripeCursor)
            .values(name=_EVENTS, position=now, looked_at=now - every)
            .on_conflict_do_nothing()
        )
        return connection.scalar(
            update(StripeCursor)
            .where(
                StripeCursor.name == _EVENTS,
                # A time to come was written by a clock that was wrong: nobody waits for it.
                or_(StripeCursor.looked_at <= now - every, StripeCursor.looked_at > now),
            )
            .values(looked_at=now)
            .returning(StripeCursor.position)
        )


def finish_event_list(engine: Engine, position: datetime | None, *, wrong: datetime | None = None) -> None:
    """Note that the list was read, and that all events up to `position`, if that is known, have been seen to.

    Never goes back, but from a position that was `wrong`: a time to come.
    """
    values: dict[str, object] = {"read_at": func.metering_now()}
    if position is not None:
        later = func.greatest(StripeCursor.position, position)
        values["position"] = (
            later if wrong is None else case((StripeCursor.position == wrong, position), else_=later)
        )
    with transaction(engine) as connection:
        connection.execute(update(StripeCursor).where(StripeCursor.name == _EVENTS).values(values))


def event_list_age(engine: Engine) -> timedelta | None:
    """How long ago the list was last read to its end, by any process; None if it never was."""
    with transaction(engine) as connection:
        return connection.scalar(
            select(func.metering_now() - StripeCursor.read_at).where(StripeCursor.name == _EVENTS)
        )

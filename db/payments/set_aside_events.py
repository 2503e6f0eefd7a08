"""Events of Stripe's that could not be handled: kept here, tried again, and in nobody's way."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.orm import Session

from db.models import SetAsideEvent
from db.operators.log import Actor, log_action
from db.payments.stripe_events import EventRef, keep_event
from db.postgres.engine import transaction
from metering.rules.lookup_schedule import lookup_delay

DISMISSED: Final = "dismissed"
"""What became of an event that an operator has given up."""
PAGE: Final = 100
"""How many are tried again in one turn."""
_KEPT: Final = text("SELECT id FROM set_aside_events WHERE id = ANY(CAST(:ids AS text[]))")
_OLDEST_FIRST: Final = select(
    *(SetAsideEvent.id, SetAsideEvent.type, SetAsideEvent.created_at),
    *(SetAsideEvent.livemode, SetAsideEvent.data, SetAsideEvent.tries),
).order_by(SetAsideEvent.created_at, SetAsideEvent.id)
_SECRET: Final = "client_secret"  # noqa: S105 - a field's name


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event that was set aside."""

    ref: EventRef
    livemode: bool
    data: dict[str, Any]


def set_aside(
    engine: Engine, ref: EventRef, *, livemode: bool, data: Mapping[str, Any], error: str, now: datetime
) -> None:
    """Keep an event that could not be handled."""
    with transaction(engine) as connection:
        connection.execute(
            insert_unless_there(SetAsideEvent)
            .values(
                id=ref.id,
                type=ref.type,
                created_at=ref.created_at,
                livemode=livemode,
                data=_without_secrets(data),
                set_aside_at=now,
                retry_at=now + lookup_delay(1),
                error=error,
            )
            .on_conflict_do_nothing()
        )


def set_aside_among(engine: Engine, event_ids: Collection[str]) -> set[str]:
    """Which of these events are set aside."""
    with transaction(engine) as connection:
        return set(connection.scalars(_KEPT, {"ids": list(event_ids)}))


def take_due(engine: Engine, now: datetime) -> list[KeptEvent]:
    """Take those upon oneself that are to be tried again by now, oldest first; others come to them only later."""
    with transaction(engine) as connection:
        due = connection.execute(
            _OLDEST_FIRST.where(SetAsideEvent.retry_at <= now).limit(PAGE).with_for_update(skip_locked=True)
        ).all()
        for row in due:
            tries = row.tries + 1
            connection.execute(
                update(SetAsideEvent)
                .where(SetAsideEvent.id == row.id)
                .values(tries=tries, retry_at=now + lookup_delay(tries))
            )
        return [_kept(row) for row in due]


def read_set_aside(engine: Engine, event_id: str | None) -> list[KeptEvent]:
    """Those there are, whether or not their time has come, oldest first; or one of them."""
    wanted = _OLDEST_FIRST if event_id is None else _OLDEST_FIRST.where(SetAsideEvent.id == event_id)
    with transaction(engine) as connection:
        return [_kept(row) for row in connection.execute(wanted)]


def _kept(row: Row[Any]) -> KeptEvent:
    return KeptEvent(EventRef(row.id, row.type, row.created_at), row.livemode, row.data)


def list_set_aside(connection: Connection, *, limit: int, offset: int = 0) -> tuple[list[SetAsideEvent], int]:
    """A page of them, oldest first, with the number that there are in all."""
    oldest = select(SetAsideEvent).order_by(SetAsideEvent.created_at, SetAsideEvent.id)
    total = connection.scalar(select(func.count()).select_from(SetAsideEvent)) or 0
    return list(Session(connection).scalars(oldest.limit(limit).offset(offset))), total


def dismiss(connection: Connection, event_id: str, *, actor: Actor, reason: str) -> bool:
    """Give one up, in the caller's transaction, and log who did; False where none such waits.

    It counts as known from now on, so that neither the list nor a webhook brings it back. One that is handled at this very moment
    keeps its effect.
    """
    row = connection.execute(
        delete(SetAsideEvent)
        .where(SetAsideEvent.id == event_id)
        .returning(SetAsideEvent.type, SetAsideEvent.created_at, SetAsideEvent.error)
    ).one_or_none()
    if row is None:
        return False
    if not keep_event(connection, EventRef(event_id, row.type, row.created_at), DISMISSED):
        return False  # handled meanwhile, by whoever forgets it now
    log_action(
        connection,
        actor,
        "stripe-event dismiss",
        subject=event_id,
        reason=reason,
        details={"type": row.type, "error": row.error},
    )
    return True


def note_error(engine: Engine, event_id: str, error: str) -> None:
    """Note why one could not be handled this time, either."""
    with transaction(engine) as connection:
        connection.execute(update(SetAsideEvent).where(SetAsideEvent.id == event_id).values(error=error))


def forget_set_aside(engine: Engine, event_id: str) -> None:
    """Drop one that has been handled: it stands among the handled ones now."""
    with transaction(engine) as connection:
        connection.execute(delete(SetAsideEvent).where(SetAsideEvent.id == event_id))


def count_set_aside(connection: Connection) -> tuple[int, datetime | None]:
    """How many there are, and since when the oldest one waits."""
    row = connection.execute(select(func.count(), func.min(SetAsideEvent.set_aside_at))).one()
    return row[0], row[1]


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_secrets(each) for name, each in value.items() if name != _SECRET}
    return [_without_secrets(each) for each in value] if isinstance(value, list) else value

"""Attempts: the rows behind charges, from their making to their end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, func, insert, or_, select, true, update

from db.models import PaymentAttempt
from db.postgres.clock import read_clock
from db.postgres.engine import transaction
from metering.rules.lookup_schedule import CLOCK_SKEW, LATEST_LOOK, LONGEST_LEASE, SEND_WINDOW, WORK_LEASE
from metering.rules.payments import AttemptKind, AttemptStatus, Intent

ENQUEUE_GRACE: Final = timedelta(seconds=5)
"""How long a new attempt is left to the message that was sent for it, before the reconciler looks at it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt as it stood when it was read; see db.models.PaymentAttempt."""

    org_id: int
    id: UUID
    kind: AttemptKind
    amount_cents: int
    customer_id: str
    payment_method_id: str
    return_url: str | None
    created_at: datetime
    monthly_limit_cents: int | None
    month_committed_cents: int
    recovered: bool
    status: AttemptStatus
    payment_intent_id: str | None
    intent_created_at: datetime | None
    intent_status: str | None
    failure_code: str | None
    failure_message: str | None
    first_sent_at: datetime | None
    last_sent_at: datetime | None
    tries: int
    look_at: datetime
    looked_at: datetime | None
    finished_at: datetime | None
    in_hand_until: datetime | None
    answered_at: datetime | None

    @property
    def open(self) -> bool:
        """Whether its end isn't known yet."""
        return self.status is AttemptStatus.OPEN

    @property
    def outcome_known(self) -> bool:
        """Whether Stripe has said anything about it that a customer can be told."""
        return not self.open or self.intent_status is not None

    @property
    def uncharged(self) -> bool:
        """Whether it has ended without a word from a bank, so that nothing can come of it: whoever asked for it may ask anew.

        Stripe refused it, or never got it, or its PaymentIntent was cancelled before anybody finished it.
        """
        return self.status is AttemptStatus.CANCELLED or (
            self.status is AttemptStatus.FAILED and not self.declined
        )

    @property
    def declined(self) -> bool:
        """Whether it has ended with a decline; its PaymentIntent, if one was made, is cancelled."""
        return self.status is AttemptStatus.FAILED and self.intent_status is not None

    def in_hand(self, now: datetime) -> bool:
        """Whether somebody is at it. A lease that ends later than any can was taken by a clock that was wrong, and is none."""
        return self.in_hand_until is not None and now < self.in_hand_until <= now + LONGEST_LEASE

    def is_due(self, now: datetime) -> bool:
        """Whether it is to be looked at; so too where that was put off for longer than ever is: by a clock that was wrong."""
        return not now < self.look_at <= now + LATEST_LOOK


_COLUMNS: Final = [getattr(PaymentAttempt, name) for name in Attempt.__dataclass_fields__]


def _attempt(row: Sequence[object]) -> Attempt:
    values: dict[str, Any] = dict(zip(Attempt.__dataclass_fields__, row, strict=True))
    return Attempt(
        **values | {"kind": AttemptKind(values["kind"]), "status": AttemptStatus(values["status"])}
    )


def make_attempt(
    connection: Connection,
    org_id: int,
    kind: AttemptKind,
    *,
    amount_cents: int,
    customer_id: str,
    payment_method_id: str,
    at: datetime,
    return_url: str | None = None,
    monthly_limit_cents: int | None = None,
    month_committed_cents: int = 0,
    attempt_id: UUID | None = None,
) -> UUID:
    """Write an open attempt, in the caller's transaction, under the org's lock; give its id, a random one unless told.

    A top-up counts as sent from the start, because the request that makes it sends it at once.
    """
    top_up = kind is AttemptKind.TOP_UP
    attempt_id = attempt_id or uuid4()
    _insert_attempt(
        connection,
        org_id,
        attempt_id,
        kind,
        amount_cents=amount_cents,
        customer_id=customer_id,
        payment_method_id=payment_method_id,
        created_at=at,
        sent_at=at if top_up else None,
        look_at=at + (WORK_LEASE if top_up else ENQUEUE_GRACE),
        in_hand_until=at + WORK_LEASE if top_up else None,
        monthly_limit_cents=monthly_limit_cents,
        month_committed_cents=month_committed_cents,
        # The meter, which makes reloads, has no right to this column, and needs none: nobody is there to be sent back.
        **({"return_url": return_url} if top_up else {}),
    )
    return attempt_id


def recover_attempt(
    connection: Connection,
    org_id: int,
    attempt_id: UUID,
    kind: AttemptKind,
    *,
    status: AttemptStatus,
    amount_cents: int,
    customer_id: str,
    payment_method_id: str,
    payment_intent_id: str,
    at: datetime,
    now: datetime,
) -> None:
    """Write again an attempt that the database has lost, from what Stripe holds of it. Nobody waits to be told its outcome."""
    _insert_attempt(
        connection,
        org_id,
        attempt_id,
        kind,
        amount_cents=amount_cents,
        customer_id=customer_id,
        payment_method_id=payment_method_id,
        created_at=at,
        sent_at=at,
        look_at=now,
        payment_intent_id=payment_intent_id,
        intent_created_at=at,
        status=status.value,
        finished_at=None if status is AttemptStatus.OPEN else now,
        answered_at=now,
        recovered=True,
    )


def _insert_attempt(
    connection: Connection,
    org_id: int,
    attempt_id: UUID,
    kind: AttemptKind,
    *,
    amount_cents: int,
    customer_id: str,
    payment_method_id: str,
    created_at: datetime,
    sent_at: datetime | None,
    look_at: datetime,
    **others: object,
) -> None:
    """Write an attempt's row; `others` are the columns that only some attempts have at first."""
    connection.execute(
        insert(PaymentAttempt).values(
            org_id=org_id,
            id=attempt_id,
            kind=kind.value,
            amount_cents=amount_cents,
            customer_id=customer_id,
            payment_method_id=payment_method_id,
            created_at=created_at,
            first_sent_at=sent_at,
            last_sent_at=sent_at,
            look_at=look_at,
            **others,
        )
    )


def find_attempt(connection: Connection, org_id: int, attempt_id: UUID) -> Attempt | None:
    """An attempt by its id."""
    row = connection.execute(
        select(*_COLUMNS).where(PaymentAttempt.org_id == org_id, PaymentAttempt.id == attempt_id)
    ).one_or_none()
    return None if row is None else _attempt(row)


def find_by_intent(connection: Connection, org_id: int, payment_intent_id: str) -> Attempt | None:
    """The org's attempt whose PaymentIntent this is, if we know of one."""
    row = connection.execute(
        select(*_COLUMNS)
        .where(PaymentAttempt.org_id == org_id, PaymentAttempt.payment_intent_id == payment_intent_id)
        .order_by(PaymentAttempt.created_at)
        .limit(1)
    ).one_or_none()
    return None if row is None else _attempt(row)


def may_be_of_another(connection: Connection, org_id: int, intent: Intent) -> bool:
    """Whether a PaymentIntent that no row knows may be another attempt's than its metadata name.

    So it may unless the one that they name is the only attempt of its customer, amount and time that has none.
    """
    rows = connection.scalars(
        select(PaymentAttempt.id)
        .where(
            PaymentAttempt.org_id == org_id,
            PaymentAttempt.kind.in_([each.value for each in AttemptKind]),  # so that the index by time serves
            PaymentAttempt.created_at >= intent.created_at - SEND_WINDOW - CLOCK_SKEW,
            PaymentAttempt.created_at <= intent.created_at + CLOCK_SKEW,
            PaymentAttempt.customer_id == intent.customer_id,
            PaymentAttempt.amount_cents == intent.amount_cents,
            PaymentAttempt.payment_intent_id.is_(None),
        )
        .limit(2)
    )
    unmet = list(rows)
    return unmet != [intent.attempt_id] and (bool(unmet) or intent.attempt_id is not None)


def open_reload(connection: Connection, org_id: int) -> Attempt | None:
    """The org's open auto-reload. There is never more than one."""
    row = connection.execute(
        select(*_COLUMNS).where(
            PaymentAttempt.org_id == org_id,
            PaymentAttempt.kind == AttemptKind.AUTO_RELOAD.value,
            PaymentAttempt.status == AttemptStatus.OPEN.value,
        )
    ).one_or_none()
    return None if row is None else _attempt(row)


def unanswered_top_up(
    connection: Connection, org_id: int, *, amount_cents: int, payment_method_id: str | None, since: datetime
) -> Attempt | None:
    """The oldest identical top-up, made at `since` or later, whose outcome no client was told; None as method is any.

    See docs/reference/http-api.md#top-ups.
    """
    row = connection.execute(
        select(*_COLUMNS)
        .where(
            PaymentAttempt.org_id == org_id,
            PaymentAttempt.kind == AttemptKind.TOP_UP.value,
            PaymentAttempt.created_at >= since,
            PaymentAttempt.amount_cents == amount_cents,
            true() if payment_method_id is None else PaymentAttempt.payment_method_id == payment_method_id,
            PaymentAttempt.answered_at.is_(None),
            PaymentAttempt.status != AttemptStatus.CANCELLED.value,  # as `Attempt.uncharged`
            or_(
                PaymentAttempt.status == AttemptStatus.OPEN.value,
                PaymentAttempt.payment_intent_id.is_not(None),  # else nothing was charged
                PaymentAttempt.intent_status.is_not(None),  # or declined, and so answered, without one
            ),
        )
        .order_by(PaymentAttempt.created_at, PaymentAttempt.id)
        .limit(1)
    ).one_or_none()
    return None if row is None else _attempt(row)


def change_attempt(connection: Connection, attempt: Attempt, **values: object) -> None:
    """Write new values into an attempt's row, in the caller's transaction, under the org's lock."""
    connection.execute(
        update(PaymentAttempt)
        .where(PaymentAttempt.org_id == attempt.org_id, PaymentAttempt.id == attempt.id)
        .values(**values)
    )


def finish_attempt(
    connection: Connection,
    attempt: Attempt,
    status: AttemptStatus,
    at: datetime,
    *,
    code: str | None = None,
    message: str | None = None,
) -> None:
    """Note an attempt's end."""
    change_attempt(
        connection, attempt, status=status.value, finished_at=at, failure_code=code, failure_message=message
    )


def longest_open(engine: Engine) -> timedelta:
    """How long ago the attempt that has been open longest was made, or last sent, if that was later; 0 where none is open."""
    with transaction(engine) as connection:
        at = func.greatest(PaymentAttempt.created_at, PaymentAttempt.last_sent_at)
        still_open = PaymentAttempt.status == AttemptStatus.OPEN.value
        age: timedelta | None = connection.scalar(
            select(func.metering_now() - func.min(at)).where(still_open)
        )
    return max(age or timedelta(), timedelta())


def due_attempts(engine: Engine, *, limit: int) -> list[tuple[int, UUID]]:
    """Open attempts that somebody has to look at, longest due first. Whoever works on one first takes it (`take_next_step`)."""
    with transaction(engine) as connection:
        now = read_clock(connection)
        due = or_(PaymentAttempt.look_at <= now, PaymentAttempt.look_at > now + LATEST_LOOK)
        rows = connection.execute(
            select(PaymentAttempt.org_id, PaymentAttempt.id)
            .where(PaymentAttempt.status == AttemptStatus.OPEN.value, due)
            .order_by(PaymentAttempt.look_at)
            .limit(limit)
        )
        return [(org_id, attempt_id) for org_id, attempt_id in rows]


def list_attempts(
    connection: Connection, *, limit: int, offset: int = 0, org_id: int | None = None, open_only: bool = False
) -> tuple[list[Attempt], int]:
    """Attempts, newest first, with the number that there are in all."""
    matching = select(*_COLUMNS)
    if org_id is not None:
        matching = matching.where(PaymentAttempt.org_id == org_id)
    if open_only:
        matching = matching.where(PaymentAttempt.status == AttemptStatus.OPEN.value)
    total = connection.scalar(select(func.count()).select_from(matching.subquery())) or 0
    rows = connection.execute(
        matching.order_by(PaymentAttempt.created_at.desc(), PaymentAttempt.id).limit(limit).offset(offset)
    )
    return [_attempt(row) for row in rows], total

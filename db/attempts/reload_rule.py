"""Asking the reload rule under the orgs' locks, and writing down what follows from its answer.

See docs/reference/auto-reload.md#when-a-reload-is-due.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from db.attempts.attempts import make_attempt
from db.attempts.outbox import SKIPPED_SIGNAL, add_signal
from db.attempts.statements import DUE_RELOADS, LOCK_FREE_ORGS, RELOAD_FACTS, RELOADS_ENABLED
from db.models import RefusedHold, ReloadState
from db.postgres.arrays import array
from db.postgres.clock import ask_clock, read_clock
from db.postgres.engine import transaction
from metering.rules.payments import AttemptKind
from metering.rules.reloads import (
    REFUSAL_COUNTS_FOR,
    SIGNALLED_SKIP_REASONS,
    Due,
    LiftsWith,
    Pause,
    RefusalNote,
    ReloadAccount,
    Skipped,
    SkipReason,
    paced_until,
    reload_due,
)

PAGE: Final = 500
"""How many orgs a reconciliation looks at in one transaction."""
WALK_PAGE: Final = 200
"""How many orgs that have reloads enabled the walk looks at in one turn: some 10 ms, however many there are."""
SINCE_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Before every `ask_at` but the default."""


@dataclass(slots=True)
class Reloads:
    """What is to be seen to after the commit."""

    attempts: list[tuple[int, UUID]] = field(default_factory=list)
    """Auto-reloads that were made, by org and id: each is to be charged."""
    signals: list[tuple[int, int]] = field(default_factory=list)
    """Signals that were written, by org and id: each is to be said."""
    skipped: list[SkipReason] = field(default_factory=list)
    """New reasons why orgs that want to be reloaded are not."""
    cancelled: int = 0
    """Attempts that a change has cancelled before they were sent."""

    def add(self, other: "Reloads") -> None:
        """Take in what another part of the same work led to."""
        self.attempts += other.attempts
        self.signals += other.signals
        self.skipped += other.skipped
        self.cancelled += other.cancelled


def ask_reload_rule(connection: Connection, orgs: Mapping[int, datetime]) -> Reloads:
    """Ask the rule for orgs that the caller's transaction has locked, each with Postgres's clock after that; write what follows.

    What is due becomes an open attempt, which holds its part of the month's limit from here on. Balances and settings are
    those that the transaction has written so far.
    """
    reloads = Reloads()
    for facts in _facts(connection, orgs):
        _act(connection, facts, _decide(facts), reloads)
    return reloads


def ask_due(engine: Engine) -> Iterator[Reloads]:
    """Ask the rule for every org for which time alone may have changed its answer: a pause has ended, a month has turned.

    A page at a time, each committed before its result is given. One that somebody else holds is left for the next time.
    """
    now = ask_clock(engine)
    after_at, after = SINCE_EVER, 0
    while True:
        with transaction(engine) as connection:
            values = {"now": now, "after_at": after_at, "after": after, "limit": PAGE}
            page = connection.execute(DUE_RELOADS, values).all()
        if page:
            yield _ask(engine, [row.org_id for row in page])
        if len(page) < PAGE:
            return
        after_at, after = page[-1]


def ask_page(engine: Engine, after: int) -> tuple[Reloads, int]:
    """Ask the rule for a page of the orgs that have reloads enabled, those with ids above `after`.

    Gives what followed, and where the next page begins: 0 behind the last one. So it is found out what nobody has noted: by a
    clock that was wrong, by a program of before that runs beside this one, by hand. Only orgs for which there is something to
    write are locked.
    """
    with transaction(engine) as connection:
        page = connection.execute(RELOADS_ENABLED, {"after": after, "limit": WALK_PAGE}).all()
        now = read_clock(connection)
        facts = _facts(connection, {row.org_id: now for row in page if row.worth_asking})
        stirring = [each.org_id for each in facts if _changes_something(each, _decide(each))]
    reloads = _ask(engine, stirring) if stirring else Reloads()
    return reloads, page[-1].org_id if len(page) == WALK_PAGE else 0


def ask_every(engine: Engine) -> Iterator[Reloads]:
    """Ask the rule for every org that has reloads enabled, page by page; gives what followed, where anything did."""
    after: int | None = None
    while after != 0:
        reloads, after = ask_page(engine, after or 0)
        if reloads != Reloads():
            yield reloads


def _ask(engine: Engine, org_ids: Iterable[int]) -> Reloads:
    """Lock those of the orgs that are free, and ask the rule for them."""
    with transaction(engine) as connection:
        locked = connection.execute(LOCK_FREE_ORGS, {"org_ids": array(org_ids)}).all()
        now = read_clock(connection)
        return ask_reload_rule(connection, {row.org_id: now for row in locked})


def _facts(connection: Connection, orgs: Mapping[int, datetime]) -> Iterable[Row[Any]]:
    if not orgs:
        return []
    ats = array(at.isoformat() for at in orgs.values())
    return connection.execute(RELOAD_FACTS, {"org_ids": array(orgs), "ats": ats}).all()


def pause_of(state: Row[Any]) -> Pause | None:
    """The pause in a row of `reload_states`, in force or run out; None where there is none."""
    if state.pause_code is None:
        return None
    return Pause(
        state.pause_code,
        LiftsWith(state.pause_lifts_with),
        state.paused_at,
        state.paused_until,
        state.paused_card,
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """What an org's declines have led to, and what has been done about it."""

    pause: Pause | None = None
    """In force or run out."""
    declines: int = 0
    """Soft ones since the last success or change."""
    lifts: tuple[datetime, ...] = ()
    """When settings have lifted a pause lately."""
    declined_cards: tuple[str, ...] = ()
    """Cards that were declined since the last success, the newest last."""


def read_standing(connection: Connection, org_id: int) -> Standing:
    """How an org stands; under its lock, if something is to follow."""
    row = connection.execute(
        select(*ReloadState.__table__.columns).where(ReloadState.org_id == org_id)
    ).one_or_none()
    if row is None:
        return Standing()
    return Standing(pause_of(row), row.declines, tuple(row.lifts), tuple(row.declined_cards))


def _decide(facts: Row[Any]) -> Due | Skipped:
    account = ReloadAccount(
        balance_cents=facts.balance_cents,
        enabled=facts.auto_reload_enabled,
        minimum_cents=facts.minimum_cents,
        amount_cents=facts.amount_cents,
        monthly_limit_cents=facts.auto_reload_monthly_limit_cents,
        has_payment_method=facts.stripe_customer_id is not None
        and facts.default_payment_method_id is not None,
        attempt_open=facts.attempt_open,
        pause=pause_of(facts),
        paced_until=paced_until(facts.first_sends or ()),
        suspended=facts.suspended,
        refused=None
        if facts.refused_at is None
        else RefusalNote(facts.first_increment_cents, facts.refused_at + REFUSAL_COUNTS_FOR),
    )
    return reload_due(account, facts.committed_cents, facts.now)


def _skip_reason(decision: Due | Skipped) -> SkipReason | None:
    """What keeps an org waiting that wants to be reloaded; None where nothing does."""
    return (
        decision.reason
        if isinstance(decision, Skipped) and decision.reason in SIGNALLED_SKIP_REASONS
        else None
    )


def _ask_at(decision: Due | Skipped) -> datetime | None:
    return decision.until if isinstance(decision, Skipped) else None


def _changes_something(facts: Row[Any], decision: Due | Skipped) -> bool:
    stored = (facts.skip_reason, facts.ask_at)
    return isinstance(decision, Due) or stored != (_skip_reason(decision), _ask_at(decision))


def _act(connection: Connection, facts: Row[Any], decision: Due | Skipped, reloads: Reloads) -> None:
    if isinstance(decision, Due):
        attempt_id = make_attempt(
            connection,
            facts.org_id,
            AttemptKind.AUTO_RELOAD,
            amount_cents=decision.amount_cents,
            customer_id=facts.stripe_customer_id,
            payment_method_id=facts.default_payment_method_id,
            at=facts.now,
            monthly_limit_cents=facts.auto_reload_monthly_limit_cents,
            month_committed_cents=facts.committed_cents,
        )
        reloads.attempts.append((facts.org_id, attempt_id))
        if facts.refused_at is not None:  # whatever it was made for: the note makes no other
            connection.execute(
                update(RefusedHold).where(RefusedHold.org_id == facts.org_id).values(attempt_id=attempt_id)
            )
    skip_reason, ask_at = _skip_reason(decision), _ask_at(decision)
    if facts.skip_reason == skip_reason:
        if facts.ask_at != ask_at:
            write_state(connection, facts.org_id, ask_at=ask_at)
        return
    since = facts.now if skip_reason else None
    write_state(connection, facts.org_id, skip_reason=skip_reason, skip_since=since, ask_at=ask_at)
    if skip_reason is not None:
        fields = {"reason": skip_reason.value}
        signal_id = add_signal(connection, facts.org_id, SKIPPED_SIGNAL, fields, facts.now)
        reloads.signals.append((facts.org_id, signal_id))
        reloads.skipped.append(skip_reason)


def write_state(connection: Connection, org_id: int, **values: object) -> None:
    """Write columns of an org's reload state, made if it isn't there; under the org's lock."""
    statement = insert_or_update(ReloadState).values(org_id=org_id, **values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[ReloadState.org_id], set_=dict(values))
    )


def write_pause(connection: Connection, org_id: int, pause: Pause | None, **others: object) -> None:
    """Write an org's pause, or end it; `others` are further columns of its state."""
    write_state(
        connection,
        org_id,
        pause_code=pause.code if pause else None,
        pause_lifts_with=pause.lifts_with.value if pause else None,
        paused_at=pause.since if pause else None,
        paused_until=pause.until if pause else None,
        paused_card=pause.card if pause else None,
        **others,
    )

"""Asking the reload rule under the orgs' locks, and writing down what follows from its answer (CONTRACT.md section 6)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, select, text
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from db.arrays import array
from db.attempts import make_attempt
from db.engine import transaction
from db.models import ReloadState
from db.pending_signals import add_signal
from metering.rules.payments import AttemptKind
from metering.rules.reloads import (
    HINDRANCES,
    Due,
    LiftsWith,
    Pause,
    ReloadAccount,
    Skipped,
    SkipReason,
    reload_due,
)
from metering.runtime.clock import to_milliseconds

SKIPPED_SIGNAL: Final = "auto_reload.skipped"

PAGE: Final = 500
"""How many orgs a sweep looks at in one transaction."""


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


# The month is that of the time of posting, or of the org's newest auto-reload where that is later: a clock that lags must not
# count into a month that is over.
_FACTS: Final = """
    SELECT accounts.org_id, balance_cents, auto_reload_enabled,
        coalesce(auto_reload_minimum_cents, 0) AS minimum_cents, coalesce(auto_reload_amount_cents, 0) AS amount_cents,
        auto_reload_monthly_limit_cents, stripe_customer_id, default_payment_method_id,
        greatest(asked.at, newest.created_at) AS now,
        EXISTS (
            SELECT FROM payment_attempts
            WHERE payment_attempts.org_id = accounts.org_id AND kind = 'auto_reload' AND status = 'open'
        ) AS attempt_open,
        coalesce(month.committed_cents, 0)::bigint AS committed_cents,
        pause_code, pause_lifts_with, paused_at, paused_until, paused_card, skip_reason
    FROM accounts
    JOIN unnest(CAST(:org_ids AS bigint[]), CAST(:ats AS timestamptz[])) AS asked (org_id, at) USING (org_id)
    LEFT JOIN reload_states USING (org_id)
    LEFT JOIN LATERAL (
        SELECT created_at FROM payment_attempts
        WHERE payment_attempts.org_id = accounts.org_id AND kind = 'auto_reload'
        ORDER BY created_at DESC LIMIT 1
    ) AS newest ON true
    LEFT JOIN LATERAL (
        SELECT sum(amount_cents) AS committed_cents FROM payment_attempts
        WHERE payment_attempts.org_id = accounts.org_id AND kind = 'auto_reload' AND status IN ('open', 'succeeded')
            AND created_at >= date_trunc('month', greatest(asked.at, newest.created_at), 'UTC')
    ) AS month ON true
    ORDER BY accounts.org_id
"""

# Without locks, so it may be out of date: whoever acts on it locks the org and asks again.
_WORTH_ASKING: Final = text("""
    SELECT org_id FROM accounts LEFT JOIN reload_states USING (org_id)
    WHERE auto_reload_enabled AND org_id > :after
        AND (balance_cents < greatest(auto_reload_minimum_cents, 1) OR skip_reason IS NOT NULL)
    ORDER BY org_id LIMIT :limit
""")

_LOCK_FREE: Final = text("""
    SELECT org_id, last_posted_at FROM accounts
    WHERE org_id = ANY(CAST(:org_ids AS bigint[])) ORDER BY org_id FOR NO KEY UPDATE SKIP LOCKED
""")


def ask_reload_rule(connection: Connection, orgs: Mapping[int, datetime]) -> Reloads:
    """Ask the rule for orgs that the caller's transaction has locked, each with its time of posting; write what follows.

    What is due becomes an open attempt, which holds its part of the month's limit from here on. Balances and settings are
    those that the transaction has written so far.
    """
    reloads = Reloads()
    for facts in _facts(connection, orgs):
        _act(connection, facts, _decide(facts), reloads)
    return reloads


def ask_worth_asking(engine: Engine, now: datetime) -> Iterator[Reloads]:
    """Ask the rule for every org that has reloads enabled: a month may have turned, a pause ended, a message been lost.

    A page at a time, each in a transaction of its own that is committed before its result is given. Only orgs for which there
    is something to write are locked; one that somebody else holds is left for the next time.
    """
    now = to_milliseconds(now)
    after = 0
    while True:
        with transaction(engine) as connection:
            page = list(connection.scalars(_WORTH_ASKING, {"after": after, "limit": PAGE}))
            facts = _facts(connection, dict.fromkeys(page, now))
            stirring = [each.org_id for each in facts if _changes_something(each, _decide(each))]
        if stirring:
            with transaction(engine) as connection:
                locked = connection.execute(_LOCK_FREE, {"org_ids": array(stirring)}).all()
                reloads = ask_reload_rule(
                    connection, {row.org_id: max(now, row.last_posted_at or now) for row in locked}
                )
            yield reloads
        if len(page) < PAGE:
            return
        after = page[-1]


def _facts(connection: Connection, orgs: Mapping[int, datetime]) -> Iterable[Row[Any]]:
    if not orgs:
        return []
    ats = array(at.isoformat() for at in orgs.values())
    return connection.execute(text(_FACTS), {"org_ids": array(orgs), "ats": ats}).all()


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


def month_committed_cents(connection: Connection, org_id: int, at: datetime) -> int:
    """What auto-reloads of the UTC month of `at`, succeeded plus open, hold of the org's limit."""
    return int(
        connection.scalar(
            text("""
                SELECT coalesce(sum(amount_cents), 0) FROM payment_attempts
                WHERE org_id = :org_id AND kind = 'auto_reload' AND status IN ('open', 'succeeded')
                    AND created_at >= date_trunc('month', CAST(:at AS timestamptz), 'UTC')
                    AND created_at < date_trunc('month', CAST(:at AS timestamptz), 'UTC') + interval '1 month'
            """),
            {"org_id": org_id, "at": at},
        )
        or 0
    )


def read_state(connection: Connection, org_id: int) -> tuple[Pause | None, int]:
    """An org's pause, in force or run out, and its soft declines since the last success or change."""
    row = connection.execute(
        select(*ReloadState.__table__.columns).where(ReloadState.org_id == org_id)
    ).one_or_none()
    return (None, 0) if row is None else (pause_of(row), row.declines)


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
    )
    return reload_due(account, facts.committed_cents, facts.now)


def _hindrance(decision: Due | Skipped) -> SkipReason | None:
    """What keeps an org waiting that wants to be reloaded; None where nothing does."""
    return decision.reason if isinstance(decision, Skipped) and decision.reason in HINDRANCES else None


def _changes_something(facts: Row[Any], decision: Due | Skipped) -> bool:
    return isinstance(decision, Due) or facts.skip_reason != _hindrance(decision)


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
    hindrance = _hindrance(decision)
    if facts.skip_reason == hindrance:
        return
    write_state(connection, facts.org_id, skip_reason=hindrance, skip_since=facts.now if hindrance else None)
    if hindrance is not None:
        fields = {"reason": hindrance.value}
        signal_id = add_signal(connection, facts.org_id, SKIPPED_SIGNAL, fields, facts.now)
        reloads.signals.append((facts.org_id, signal_id))
        reloads.skipped.append(hindrance)


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

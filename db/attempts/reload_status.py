"""How auto-reloads stand: what operators look at."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from db.attempts.statements import COUNTS_IN_MONTH
from db.postgres.arrays import array
from metering.rules.payments import AttemptKind
from metering.rules.reloads import LiftsWith, may_lift_at


@dataclass(frozen=True, slots=True)
class MonthLeft:
    """What an org's auto-reloads have taken of its limit in this UTC month, open ones included, and what that leaves."""

    org_id: int
    monthly_limit_cents: int
    committed_cents: int
    left_cents: int
    """0 where the limit was lowered below what had been taken."""


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """All as of one moment, in orgs, but for attempts."""

    attempts_open: dict[str, int]
    """By kind."""
    oldest_open_at: datetime | None
    """When the oldest open attempt was made."""
    enabled: int
    paused: dict[str, int]
    """Pauses in force where reloads are enabled, by the code that led to them."""
    waiting: dict[str, int]
    """Orgs that want to be reloaded and aren't, by what keeps them waiting."""
    limited: int
    """Orgs that have reloads enabled, and a monthly limit."""
    least_left: list[MonthLeft]
    """Those of them that have least left of it, at most as many as were asked for."""


@dataclass(frozen=True, slots=True)
class OpenAttempts:
    """Attempts of one kind that are not decided yet. `oldest_s`: the age of the oldest, in seconds; 0 where there is none."""

    number: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChargesStanding:
    """How charges and reloads stand, in numbers that Prometheus is told."""

    attempts: dict[str, OpenAttempts]
    """By kind, each kind."""
    enabled: int
    """Orgs that have reloads enabled."""
    paused: dict[str, int]
    """Those of them whose reloads are paused, by the code that led to it."""


@dataclass(frozen=True, slots=True)
class OrgCharges:
    """An org's charges and what stands in the way of the next reload."""

    org_id: int
    attempts_open: int
    """Top-ups that wait for the customer left out."""
    attempts_challenged: int
    """Top-ups that wait for the customer to pass 3DS."""
    paused_for: str | None
    """The code that led to the pause in force."""
    waits_for: str | None
    """What keeps it from being reloaded, although it wants to be."""
    month_left_cents: int | None
    """What is left of the month's limit; None where there is none."""


@dataclass(frozen=True, slots=True)
class ReloadStop:
    """Why an org isn't reloaded: a pause in force, or what it waits for."""

    org_id: int
    code: str
    """The pause's, or the reason why it waits: `suspended`, `pace`, `monthly_limit`, `no_payment_method`."""
    paused: bool
    since: datetime
    lifts_with: str
    """`time`; `change`, of the default card or a setting; `card`, a different one or, where there is none, any; `month`: the next
    one, or another limit; `operator`, who resumes the org."""
    until: datetime | None
    """When time lifts it."""
    settings_lift_from: datetime | None
    """Of a pause that a change of settings lifts: from when on, after others in the last 24 hours; None where it does now."""


_ATTEMPTS: Final = text("""
    SELECT kind, count(*) AS number, min(created_at) AS oldest_at FROM payment_attempts
    WHERE status = 'open' GROUP BY kind ORDER BY kind
""")

_ENABLED: Final = text("""
    SELECT count(*), count(auto_reload_monthly_limit_cents) FROM accounts WHERE auto_reload_enabled
""")

_PAUSED: Final = text("""
    SELECT pause_code, count(*) FROM reload_states JOIN accounts USING (org_id)
    WHERE auto_reload_enabled AND pause_code IS NOT NULL AND coalesce(paused_until > :now, true)
    GROUP BY pause_code ORDER BY pause_code
""")

_WAITING: Final = text("""
    SELECT skip_reason, count(*) FROM reload_states JOIN accounts USING (org_id)
    WHERE auto_reload_enabled AND skip_reason IS NOT NULL GROUP BY skip_reason ORDER BY skip_reason
""")

_MONTH: Final = f"""
    LATERAL (SELECT date_trunc('month', CAST(:now AS timestamptz), 'UTC')) AS month (starts_at), LATERAL (
        SELECT coalesce(sum(amount_cents), 0)::bigint AS committed_cents FROM payment_attempts
        WHERE payment_attempts.org_id = accounts.org_id AND {COUNTS_IN_MONTH}
    ) AS held
"""  # noqa: S608 - of our own text alone

_LEAST_LEFT: Final = text(f"""
    SELECT org_id, auto_reload_monthly_limit_cents, committed_cents,
        greatest(auto_reload_monthly_limit_cents - committed_cents, 0) AS left_cents
    FROM accounts, {_MONTH}
    WHERE auto_reload_enabled AND auto_reload_monthly_limit_cents IS NOT NULL
    ORDER BY left_cents, org_id LIMIT :limit
""")  # noqa: S608 - of our own text alone

_CHARGES: Final = text(f"""
    SELECT org_id, attempts.open, attempts.challenged,
        CASE WHEN coalesce(paused_until > :now, true) THEN pause_code END,
        CASE WHEN auto_reload_enabled THEN skip_reason END,
        greatest(auto_reload_monthly_limit_cents - committed_cents, 0)
    FROM accounts LEFT JOIN reload_states USING (org_id), {_MONTH}, LATERAL (
        SELECT count(*) FILTER (
                WHERE kind = 'auto_reload' OR coalesce(intent_status NOT IN ('requires_action', 'requires_payment_method'), true)
            ) AS open,
            count(*) FILTER (WHERE kind = 'top_up' AND intent_status = 'requires_action') AS challenged
        FROM payment_attempts WHERE payment_attempts.org_id = accounts.org_id AND status = 'open'
    ) AS attempts
    WHERE org_id = ANY(CAST(:org_ids AS bigint[])) ORDER BY org_id
""")  # noqa: S608 - the same


def read_charges(connection: Connection, org_ids: Iterable[int], now: datetime) -> dict[int, OrgCharges]:
    """How things stand for some orgs, by org."""
    rows = connection.execute(_CHARGES, {"org_ids": array(org_ids), "now": now})
    return {row[0]: OrgCharges(*row) for row in rows}


def read_charges_standing(connection: Connection, now: datetime) -> ChargesStanding:
    """How charges and reloads stand at `now`. Reads what is open and the states of reloads: no more with years of payments."""
    opened = {kind.value: OpenAttempts() for kind in AttemptKind}
    for row in connection.execute(_ATTEMPTS):
        opened[row.kind] = OpenAttempts(row.number, max((now - row.oldest_at).total_seconds(), 0.0))
    enabled, _ = connection.execute(_ENABLED).one()
    paused = connection.execute(_PAUSED, {"now": now})
    return ChargesStanding(opened, enabled, dict(paused.all()))


def read_reload_status(connection: Connection, now: datetime, *, limit: int) -> ReloadStatus:
    """How things stand at `now`, with at most `limit` orgs by name."""
    attempts = connection.execute(_ATTEMPTS).all()
    enabled, limited = connection.execute(_ENABLED).one()
    paused = connection.execute(_PAUSED, {"now": now})
    waiting = connection.execute(_WAITING)
    least_left = connection.execute(_LEAST_LEFT, {"now": now, "limit": limit})
    return ReloadStatus(
        attempts_open={row.kind: row.number for row in attempts},
        oldest_open_at=min((row.oldest_at for row in attempts), default=None),
        enabled=enabled,
        paused=dict(paused.all()),
        waiting=dict(waiting.all()),
        limited=limited,
        least_left=[MonthLeft(*row) for row in least_left],
    )


_STOPS: Final = """
    SELECT org_id, pause_code AS code, true AS paused, paused_at AS since, pause_lifts_with AS lifts_with, paused_until AS until,
        lifts
    FROM reload_states WHERE pause_code IS NOT NULL AND coalesce(paused_until > :now, true)
    UNION ALL
    SELECT org_id, skip_reason, false, skip_since,
        CASE skip_reason WHEN 'pace' THEN 'time' WHEN 'monthly_limit' THEN 'month' WHEN 'suspended' THEN 'operator'
            ELSE 'card' END,
        ask_at, '{}'
    FROM reload_states JOIN accounts USING (org_id) WHERE auto_reload_enabled AND skip_reason <> 'paused'
"""
_STOPS_OF_ORG: Final = text(f"SELECT * FROM ({_STOPS}) AS stops WHERE org_id = :org_id ORDER BY paused DESC")  # noqa: S608 - the same
_COUNT_STOPS: Final = text(f"SELECT count(*) FROM ({_STOPS}) AS stops")  # noqa: S608 - of our own text alone
_LIST_STOPS: Final = text(f"{_STOPS} ORDER BY org_id, paused DESC LIMIT :limit OFFSET :offset")


def list_reload_stops(
    connection: Connection, now: datetime, *, limit: int, offset: int = 0
) -> tuple[list[ReloadStop], int]:
    """Every org whose reloads are paused or wait at `now`, by id, with the number that there are in all."""
    total = connection.scalar(_COUNT_STOPS, {"now": now}) or 0
    rows = connection.execute(_LIST_STOPS, {"now": now, "limit": limit, "offset": offset})
    return [_stop(row, now) for row in rows], total


def read_reload_stops(connection: Connection, org_id: int, now: datetime) -> list[ReloadStop]:
    """What keeps one org from being reloaded at `now`: nothing, a pause, or what it waits for."""
    return [_stop(row, now) for row in connection.execute(_STOPS_OF_ORG, {"org_id": org_id, "now": now})]


def _stop(row: Row[Any], now: datetime) -> ReloadStop:
    from_ = may_lift_at(row.lifts, now)
    bounded = row.paused and row.lifts_with != LiftsWith.CARD.value and from_ > now
    return ReloadStop(
        row.org_id, row.code, row.paused, row.since, row.lifts_with, row.until, from_ if bounded else None
    )

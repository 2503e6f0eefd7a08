"""How auto-reloads stand: what operators look at."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text


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

_LEAST_LEFT: Final = text("""
    SELECT org_id, auto_reload_monthly_limit_cents, committed_cents,
        greatest(auto_reload_monthly_limit_cents - committed_cents, 0) AS left_cents
    FROM accounts, LATERAL (
        SELECT coalesce(sum(amount_cents), 0)::bigint AS committed_cents FROM payment_attempts
        WHERE payment_attempts.org_id = accounts.org_id AND kind = 'auto_reload' AND status IN ('open', 'succeeded')
            AND created_at >= date_trunc('month', CAST(:now AS timestamptz), 'UTC')
    ) AS month
    WHERE auto_reload_enabled AND auto_reload_monthly_limit_cents IS NOT NULL
    ORDER BY left_cents, org_id LIMIT :limit
""")


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

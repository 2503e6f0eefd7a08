"""Suspending an org, and resuming it (docs/reference/gate.md#suspended-orgs)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select, text, update

from db.accounts.billing import cancel_unsent_reload
from db.attempts.attempts import open_reload
from db.attempts.reload_rule import Reloads, ask_reload_rule
from db.ledger.post_calls import BalanceChange, lock_accounts
from db.models import Account
from db.models.errors import UnknownOrgError
from db.postgres.engine import driver_connection
from metering.rules.gates import Balance

SUSPENDED_CODE: Final = "org_suspended"
"""Why an auto-reload that had not been sent was cancelled."""

# Roles of the version before, which would open the gate of a suspended org; they can't be started at this schema, but may still
# run. A program of this version and later says its own (`metering.console.connections`). Any user may see these columns.
_UNAWARE: Final = text("""
    SELECT DISTINCT application_name FROM pg_stat_activity
    WHERE datname = current_database()
        AND application_name IN ('metering meter', 'metering jobs', 'metering api', 'metering api, quick', 'metering up')
    ORDER BY application_name
""")


class UnawareProgramsError(Exception):
    """Programs run that don't know what a suspended org is. The text names them, and the remedy."""


@dataclass(frozen=True, slots=True)
class Suspension:
    """What came of suspending or resuming an org."""

    changed: bool
    """Whether it wasn't so before."""
    since: datetime
    """Since when the org is suspended; of one that is resumed, until when it was."""
    balance: Balance
    """What the gate follows now."""
    reload_on_its_way: bool
    """Whether an auto-reload is at Stripe: it is settled, and credited if it succeeds."""
    reloads: Reloads
    """What the reload rule said, with the auto-reload that was cancelled."""


def suspend_org(connection: Connection, org_id: int) -> Suspension:
    """Close an org's gate, whatever its balance, until it is resumed, in the caller's transaction.

    An auto-reload that has not been sent is cancelled, and none is made. One that is suspended already is left as it is. Raises
    UnknownOrgError for an org that isn't there, UnawareProgramsError.
    """
    change, since = _lock(connection, org_id)
    if since is not None:
        return _unchanged(connection, change, since)
    _require_aware(connection)
    _write(connection, change, suspended_at=change.now, suspended_version=change.version)
    change.suspended = True
    reloads = Reloads(cancelled=cancel_unsent_reload(connection, change, code=SUSPENDED_CODE))
    return _changed(connection, change, reloads, change.now)


def resume_org(connection: Connection, org_id: int) -> Suspension:
    """Let the balance alone say whether an org's calls may start, in the caller's transaction; the reload rule is asked at once.

    One that isn't suspended is left as it is. Raises UnknownOrgError for an org that isn't there.
    """
    change, since = _lock(connection, org_id)
    if since is None:
        return _unchanged(connection, change, change.now)
    _write(connection, change, suspended_at=None, suspended_version=None)
    change.suspended = False
    return _changed(connection, change, Reloads(), change.now)


def suspended_since(connection: Connection, org_id: int) -> datetime | None:
    """Since when an org is suspended; None for one that isn't, or isn't there."""
    return connection.scalar(select(Account.suspended_at).where(Account.org_id == org_id))


def _lock(connection: Connection, org_id: int) -> tuple[BalanceChange, datetime | None]:
    change = lock_accounts(driver_connection(connection), [org_id]).get(org_id)
    if change is None:
        raise UnknownOrgError(org_id)
    return change, suspended_since(connection, org_id)


def _require_aware(connection: Connection) -> None:
    found = list(connection.scalars(_UNAWARE))
    if found:
        raise UnawareProgramsError(
            f"Programs of an older version are connected to this database ({', '.join(found)}): they don't know suspended orgs,"
            " and would open the gate again. Stop them, start this version, and repeat the command."
        )


def _write(connection: Connection, change: BalanceChange, **columns: object) -> None:
    """No posting: the time of the newest one stays. The version rises, as the gate follows it."""
    connection.execute(
        update(Account).where(Account.org_id == change.org_id).values(version=change.version, **columns)
    )


def _changed(connection: Connection, change: BalanceChange, reloads: Reloads, since: datetime) -> Suspension:
    reloads.add(ask_reload_rule(connection, {change.org_id: change.now}))
    return Suspension(True, since, change.balance, _on_its_way(connection, change.org_id), reloads)


def _unchanged(connection: Connection, change: BalanceChange, since: datetime) -> Suspension:
    return Suspension(
        False, since, change.unchanged_balance, _on_its_way(connection, change.org_id), Reloads()
    )


def _on_its_way(connection: Connection, org_id: int) -> bool:
    attempt = open_reload(connection, org_id)
    return attempt is not None and attempt.first_sent_at is not None

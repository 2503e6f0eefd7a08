"""All that an operator asks of one org at once: bounded, however long its history is."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, select, text
from sqlalchemy.orm import Session

from db.accounts.billing import BillingAccount, read_billing
from db.attempts.reload_status import OrgCharges, ReloadStop, read_charges, read_reload_stops
from db.ledger.daily_usage import Usage, read_usage
from db.ledger.rejections import list_named
from db.models import Account, ApiKey, OperatorLogEntry, PaymentMethod, RejectedEvent
from db.models.errors import UnknownOrgError
from db.operators.log import list_log

LOOKED_AT: Final = 1_000
"""How many transactions are looked back over for when the gate last changed."""

# By the primary key, newest first. What the gate was before lies further back, or nowhere.
_SINCE: Final = text("""
    WITH newest AS MATERIALIZED (
        SELECT id, created_at, balance_after_cents > 0 AS open FROM transactions
        WHERE org_id = :org_id ORDER BY org_id DESC, id DESC LIMIT :limit
    ), other AS (
        SELECT max(id) AS id FROM newest WHERE open <> :open
    )
    SELECT min(created_at) AS since, (SELECT id FROM other) IS NULL AND (SELECT count(*) FROM newest) = :limit AS earlier
    FROM newest WHERE id > coalesce((SELECT id FROM other), 0)
""")
_LAST: Final = text("""
    SELECT id, kind, amount_cents, balance_after_cents, created_at, description, call_id FROM transactions
    WHERE org_id = :org_id ORDER BY org_id DESC, id DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class OrgOverview:
    """One org, as of one moment."""

    account: Account
    billing: BillingAccount
    state_since: datetime
    """Since when it is suspended, or its balance is above 0, or isn't."""
    since_earlier: bool
    """It is so for longer: `state_since` is as far as was looked back."""
    charges: OrgCharges
    stops: list[ReloadStop]
    """What keeps it from being reloaded."""
    cards: list[PaymentMethod]
    """Those that can be charged, the newest first."""
    keys: list[ApiKey]
    """Those that aren't revoked."""
    transactions: list[Row[Any]]
    rejected: list[RejectedEvent]
    """Events that name it and could not be billed."""
    log: list[OperatorLogEntry]
    usage: list[Usage]
    """This UTC month's and the last one's, by day and tier."""


def read_overview(connection: Connection, org_id: int, now: datetime, *, last: int) -> OrgOverview:
    """An org with its `last` transactions, rejected events and what operators did. Raises UnknownOrgError."""
    session = Session(connection)
    account = session.get(Account, org_id)
    billing = read_billing(connection, org_id)
    if account is None or billing is None:
        raise UnknownOrgError(org_id)
    since = connection.execute(
        _SINCE, {"org_id": org_id, "open": account.balance_cents > 0, "limit": LOOKED_AT}
    ).one()
    cards = select(PaymentMethod).where(PaymentMethod.org_id == org_id, PaymentMethod.detached_at.is_(None))
    keys = select(ApiKey).where(ApiKey.org_id == org_id, ApiKey.revoked_at.is_(None))
    return OrgOverview(
        account=account,
        billing=billing,
        state_since=account.suspended_at or since.since or account.created_at,
        since_earlier=since.earlier and account.suspended_at is None,
        charges=read_charges(connection, [org_id], now)[org_id],
        stops=read_reload_stops(connection, org_id, now),
        cards=list(session.scalars(cards.order_by(PaymentMethod.ready_at.desc()).limit(last))),
        keys=list(session.scalars(keys.order_by(ApiKey.id.desc()).limit(last))),
        transactions=list(connection.execute(_LAST, {"org_id": org_id, "limit": last})),
        rejected=list_named(connection, org_id, limit=last),
        log=list_log(connection, limit=last, org_id=org_id)[0],
        usage=read_usage(connection, org_id, _last_month(now)),
    )


def _last_month(now: datetime) -> date:
    """The first day of the UTC month before this one."""
    this_month = now.astimezone(UTC).date().replace(day=1)
    return (this_month - timedelta(days=1)).replace(day=1)

"""How many of an org's calls may run at once (docs/reference/gate.md#concurrent-calls)."""

from dataclasses import dataclass

from sqlalchemy import Connection, update

from db.ledger.post_calls import lock_accounts
from db.models import Account
from db.models.errors import UnknownOrgError
from db.postgres.engine import driver_connection
from metering.rules.gates import Balance


@dataclass(frozen=True, slots=True)
class LimitedCalls:
    """What came of setting the limit."""

    before: int | None
    """None was no limit."""
    balance: Balance
    """What the gate follows now, the limit with it."""

    @property
    def changed(self) -> bool:
        """Whether it was another one before."""
        return self.before != self.balance.max_concurrent_calls


def limit_concurrent_calls(connection: Connection, org_id: int, limit: int | None) -> LimitedCalls:
    """Set how many calls of an org may run at once, in the caller's transaction; None is no limit.

    No posting: the version rises, as the gate follows it. Raises UnknownOrgError for an org that isn't there.
    """
    change = lock_accounts(driver_connection(connection), [org_id]).get(org_id)
    if change is None:
        raise UnknownOrgError(org_id)
    before = change.max_concurrent_calls
    if before == limit:
        return LimitedCalls(before, change.unchanged_balance)
    change.max_concurrent_calls = limit
    connection.execute(
        update(Account)
        .where(Account.org_id == org_id)
        .values(
            max_concurrent_calls=limit,
            version=change.version,
            suspended_version=change.version if change.suspended else None,
        )
    )
    return LimitedCalls(before, change.balance)

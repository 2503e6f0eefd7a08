"""Balances with their versions, read for what follows them elsewhere."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from sqlalchemy import Engine, select

from db.engine import driver_connection, transaction
from db.ledger import array, lock_accounts
from db.models import Account
from metering.rules.gates import Balance
from metering.runtime.clock import Clock

_READ: Final = (
    "SELECT org_id, balance_cents, version FROM accounts WHERE org_id = ANY(%s::bigint[]) ORDER BY org_id"
)

_RAISE: Final = """
    UPDATE accounts SET version = raised.version
    FROM unnest(%s::bigint[], %s::bigint[]) AS raised (org_id, version)
    WHERE accounts.org_id = raised.org_id
"""


def pages_of_org_ids(engine: Engine, size: int) -> Iterator[list[int]]:
    """All orgs in order of id, so many at a time. Each page is read for itself: nothing is held open in between."""
    after = 0
    while True:
        wanted = select(Account.org_id).where(Account.org_id > after).order_by(Account.org_id).limit(size)
        with transaction(engine) as connection:
            page = list(connection.scalars(wanted))
        if not page:
            return
        yield page
        after = page[-1]


def read_balances(engine: Engine, org_ids: Iterable[int]) -> list[Balance]:
    """The balances of those of `org_ids` that exist, in order of id."""
    with transaction(engine) as connection, driver_connection(connection).cursor(binary=True) as cursor:
        return [Balance(*row) for row in cursor.execute(_READ, [array(org_ids)])]


def raise_versions(engine: Engine, above: Mapping[int, int], clock: Clock) -> list[Balance]:
    """Raise the version of each org in `above` over the one given there, under the orgs' locks.

    For a database that was restored to an earlier time: what follows it has seen higher versions than it now knows.
    Returns the balances as they are then.
    """
    with transaction(engine) as connection:
        driver = driver_connection(connection)
        accounts = lock_accounts(driver, above, clock)
        # lock_accounts gives each account its next version, which must also pass the one seen elsewhere.
        raised = [
            Balance(each.org_id, each.balance_cents, max(each.version, above[each.org_id] + 1))
            for each in accounts.values()
        ]
        driver.execute(
            _RAISE, [array(each.org_id for each in raised), array(each.version for each in raised)]
        )
    return raised

"""Balances with their versions, read for what follows them elsewhere."""

from collections.abc import Iterable, Iterator, Mapping

from sqlalchemy import Engine, select

from db.ledger.statements import LOCK_FREE_BALANCES, RAISE_VERSIONS, READ_BALANCES
from db.models import Account
from db.postgres.arrays import array
from db.postgres.engine import driver_connection, transaction
from metering.rules.gates import Balance


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
        return [Balance(*row) for row in cursor.execute(READ_BALANCES, [array(org_ids)])]


def raise_versions(engine: Engine, above: Mapping[int, int]) -> list[Balance]:
    """Raise the version of each org in `above` over the one given there, under the orgs' locks.

    For a database that was restored to an earlier time: what follows it has seen higher versions than it now knows. An org that
    somebody else has locked is left as it is, for the next time. Returns the balances of the others as they are then.
    """
    with transaction(engine) as connection:
        driver = driver_connection(connection)
        with driver.cursor(binary=True) as cursor:
            rows = cursor.execute(LOCK_FREE_BALANCES, [array(above)]).fetchall()
        raised = [
            Balance(org_id, balance_cents, max(version, above[org_id]) + 1, suspended, max_concurrent_calls)
            for org_id, balance_cents, version, suspended, max_concurrent_calls in rows
        ]
        driver.execute(
            RAISE_VERSIONS, [array(each.org_id for each in raised), array(each.version for each in raised)]
        )
    return raised

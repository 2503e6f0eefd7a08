"""Daily usage: calls, billable seconds and cents by org, tier and UTC day of the calls' start, derived from the ledger.

An org's transactions are only ever added, under its lock: so id order is the order of commits, and whoever sees one sees all of
that org's with lower ids. A cursor for each org therefore misses nothing, whatever commits meanwhile, and takes no lock that the
hot path waits for (docs/explanation/decisions/0025-daily-usage.md). What is read here is exact: what lies beyond the cursor is
added from the ledger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from sqlalchemy import Connection, Engine, text

from db.audit.invariants.derived import DAY
from db.postgres.arrays import array
from db.postgres.engine import transaction

TRANSACTIONS_AT_ONCE: Final = 50_000
"""About how many are counted in one transaction; of one org never more."""

_LOCK: Final = 5_147_392_086_410_227_415
"""One process counts at a time."""

# Orgs that have something new, the first ones, with a bounded number of transactions; by accounts and cursors alone.
_BEHIND: Final = text("""
    SELECT org_id, after_id, new_count FROM (
        SELECT *, sum(least(new_count, :limit)) OVER (ORDER BY org_id) - least(new_count, :limit) AS before FROM (
            SELECT org_id, coalesce(cursors.transaction_id, -1) AS after_id,
                accounts.transaction_count - coalesce(cursors.transaction_count, 0) AS new_count
            FROM accounts LEFT JOIN daily_usage_cursors AS cursors USING (org_id)
            WHERE org_id > :after AND accounts.transaction_count <> coalesce(cursors.transaction_count, 0)
            ORDER BY org_id LIMIT :limit
        ) AS org
    ) AS org
    WHERE before < :limit ORDER BY org_id
""")

# One statement, and so one snapshot: what is counted and where the cursor then stands are the same rows. By the primary key.
_COUNT: Final = text(f"""
    WITH fresh AS MATERIALIZED (
        SELECT org.org_id, new.* FROM unnest(CAST(:org_ids AS bigint[]), CAST(:after_ids AS bigint[])) AS org (org_id, after_id)
        CROSS JOIN LATERAL (
            SELECT id, tier, billable_seconds, amount_cents, CASE WHEN kind = 'debit' THEN {DAY} END AS day
            FROM transactions WHERE transactions.org_id = org.org_id AND id > org.after_id
            ORDER BY transactions.org_id, id LIMIT :limit
        ) AS new
    ), counted AS (
        INSERT INTO daily_usage AS known (org_id, tier, day, calls, billable_seconds, billed_cents)
        SELECT org_id, tier, day, count(*), sum(billable_seconds), -sum(amount_cents) FROM fresh
        WHERE day IS NOT NULL GROUP BY org_id, tier, day ORDER BY org_id, tier, day
        ON CONFLICT (org_id, tier, day) DO UPDATE SET calls = known.calls + excluded.calls,
            billable_seconds = known.billable_seconds + excluded.billable_seconds,
            billed_cents = known.billed_cents + excluded.billed_cents
    ), moved AS (
        INSERT INTO daily_usage_cursors AS known (org_id, transaction_id, transaction_count)
        SELECT org_id, max(id), count(*) FROM fresh GROUP BY org_id ORDER BY org_id
        ON CONFLICT (org_id) DO UPDATE SET transaction_id = excluded.transaction_id,
            transaction_count = known.transaction_count + excluded.transaction_count
    )
    SELECT count(*) FROM fresh
""")  # noqa: S608 - our own words

_READ: Final = text(f"""
    SELECT tier, day, sum(calls), sum(billable_seconds), sum(billed_cents) FROM (
        SELECT tier, day, calls, billable_seconds, billed_cents FROM daily_usage
        WHERE org_id = :org_id AND day >= :since
        UNION ALL
        SELECT tier, day, 1, billable_seconds, -amount_cents FROM (
            SELECT *, {DAY} AS day FROM transactions
            WHERE org_id = :org_id AND kind = 'debit'
                AND id > coalesce((SELECT transaction_id FROM daily_usage_cursors WHERE org_id = :org_id), -1)
        ) AS new
        WHERE day >= :since
    ) AS each
    GROUP BY tier, day ORDER BY day, tier
""")  # noqa: S608 - our own words


@dataclass(frozen=True, slots=True)
class Usage:
    """What an org used of a tier on a UTC day."""

    tier: str
    day: date
    calls: int
    billable_seconds: int
    billed_cents: int


@dataclass(frozen=True, slots=True)
class CountedPage:
    """How many transactions were counted, and after which org the next page begins; None after the last one."""

    transactions: int
    next_after: int | None


BEFORE_ALL: Final = -(2**63)


def count_page(
    engine: Engine, after: int = BEFORE_ALL, *, at_once: int = TRANSACTIONS_AT_ONCE
) -> CountedPage:
    """Count what is new in some orgs after one, in a transaction; nothing where another process does so just now."""
    with transaction(engine) as connection:
        if not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
            return CountedPage(0, None)
        # Under the lock, each statement on a snapshot of its own: so these cursors are those that the last one has left.
        behind = connection.execute(_BEHIND, {"after": after, "limit": at_once}).all()
        if not behind:
            return CountedPage(0, None)
        counted = _count(
            connection, [row.org_id for row in behind], [row.after_id for row in behind], at_once
        )
    last = behind[-1]
    return CountedPage(counted, last.org_id - 1 if last.new_count > at_once else last.org_id)


def _count(connection: Connection, org_ids: Sequence[int], after_ids: Sequence[int], at_once: int) -> int:
    values = {"org_ids": array(org_ids), "after_ids": array(after_ids), "limit": at_once}
    return int(connection.scalar(_COUNT, values) or 0)


def read_usage(connection: Connection, org_id: int, since: date) -> list[Usage]:
    """What an org used, by day and tier, of calls that started on that UTC day or later: exact, as of one snapshot."""
    rows = connection.execute(_READ, {"org_id": org_id, "since": since})
    return [
        Usage(tier, day, int(calls), int(seconds), int(cents)) for tier, day, calls, seconds, cents in rows
    ]

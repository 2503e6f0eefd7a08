"""A ledger that already holds years of debits."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from sqlalchemy import Engine, text

from db.postgres.engine import transaction
from metering.runtime.clock import to_milliseconds

CHUNK: Final = 500_000
CENTS: Final = 8
_FIRST_CALL_ID: Final = 1_000_000_000_000
"""Far from the calls that are measured."""

# Round and round over the orgs, as calls come in, so that the table and its indexes look as after years of them.
_DEBITS: Final = text("""
    INSERT INTO transactions (
        org_id, kind, amount_cents, balance_after_cents, created_at, description,
        call_id, stream_id, tier, direction, duration_us, ended_at, phone_number_id, phone_number_value,
        billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd
    )
    SELECT org_id, 'debit', -:cents, balance_cents - :cents * (n / :orgs + 1 - :first / :orgs), :at,
        'Call billing: 1 minute × $0.08', :first_call_id + n, '1776709506201-' || n, 'bolt', 'outbound', 60000000, :at,
        201, '+15551234567', 60, 80000, 60, 60, 0, 0
    FROM generate_series(CAST(:first AS bigint), :last) AS n JOIN accounts ON org_id = n % :orgs + 1
    ORDER BY n
""")

_ACCOUNTS: Final = text("""
    UPDATE accounts SET balance_cents = balance_cents - :cents * :each, transaction_count = transaction_count + :each,
        version = version + 1, last_posted_at = :at
    WHERE org_id BETWEEN 1 AND :orgs
""")


def fill_ledger(
    owner: Engine,
    count: int,
    *,
    orgs: int,
    at: datetime,
    report: Callable[[int], None],
    numbered_from: int = 0,
    chunk: int = CHUNK,
) -> int:
    """Write about `count` debits of orgs 1 to `orgs`, which exist, as if posted at `at`; give how many.

    Made by Postgres itself, but true to every rule of the ledger: an audit passes. `at` must not be before what is there.
    `numbered_from` is how many were written so before;
    `chunk` is about how many are written in one transaction, the least there are.
    """
    step = max(chunk // orgs, 1) * orgs  # whole rounds, so that each org has as many
    written = 0
    while written < count:
        first = numbered_from + written
        facts = {"cents": CENTS, "orgs": orgs, "at": to_milliseconds(at)}
        with transaction(owner) as connection:
            connection.execute(
                _DEBITS, facts | {"first": first, "last": first + step - 1, "first_call_id": _FIRST_CALL_ID}
            )
            connection.execute(_ACCOUNTS, facts | {"each": step // orgs})
        written += step
        report(step)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) transactions"))
        connection.execute(text("VACUUM (ANALYZE) accounts"))
    return written

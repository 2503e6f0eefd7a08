"""The ledger's hot statements: those asked for every batch of calls, and for every page of gates that are compared.

Each says on which path it is, what it locks, and the index that it lives by.
"""

from typing import Final

from db.ledger.debit_rows import COLUMNS, STEP_COLUMNS
from db.postgres.exchange import Statement

# Posting calls (post_calls.py), in this order: the first three go together, in one round trip.

# Locks every org of the batch until the commit. Sorted, so that two batches can't wait for each other; NO KEY, because nothing
# points at an account with a foreign key. By the primary key.
_LOCK: Final = """
    SELECT org_id, balance_cents, version, transaction_count, last_posted_at,
        CASE WHEN auto_reload_enabled THEN greatest(auto_reload_minimum_cents, 1) END, suspended_at IS NOT NULL,
        max_concurrent_calls
    FROM accounts WHERE org_id = ANY($1) ORDER BY org_id FOR NO KEY UPDATE
"""
LOCK_ACCOUNTS: Final = Statement("lock_accounts", _LOCK, ("int8[]",))
"""All that are there, waiting for those that somebody else holds. Payments, settings and adjustments lock an org by it too."""
LOCK_FREE_ACCOUNTS: Final = Statement("lock_free_accounts", f"{_LOCK} SKIP LOCKED", ("int8[]",))
"""Only those that nobody holds: where a stranger's session has held up a batch for too long."""

# Under the locks, so that nobody can set another price meanwhile that counts. Locks nothing; a table of one row.
# Postgres's clock with it, which so has no statement of its own.
PRICE_BOOK_VERSION: Final = Statement(
    "price_book_version_and_clock", "SELECT version, metering_now() FROM price_book"
)

# Where no calls are posted: after the locks, in the same turn. Within the locking statement it could be read before the wait.
CLOCK: Final = Statement("clock", "SELECT metering_now()")

# Under the locks, on a snapshot of its own: a call billed while the locks were waited for is seen. Locks nothing. By
# transactions_call_key: LATERAL with LIMIT keeps the planner on it, one probe per call, whatever it believes of the table's size.
FIND_BILLED_CALLS: Final = Statement(
    "find_billed_calls",
    """
    SELECT billed.*
    FROM unnest($1, $2) AS wanted (org_id, call_id)
    CROSS JOIN LATERAL (
        SELECT org_id, call_id, tier, direction, duration_us, ended_at, phone_number_id, phone_number_value, metadata::text
        FROM transactions
        WHERE transactions.org_id = wanted.org_id AND transactions.call_id = wanted.call_id
        LIMIT 1
    ) AS billed
    """,
    ("int8[]", "int8[]"),
)

# Only where an org's use may be counted, with the first three. Locks nothing: who holds the org's lock owns its rows. By the
# primary key.
READ_USAGE: Final = Statement(
    "read_usage",
    """
    SELECT usage.org_id, usage.tier, wanted.month, usage.billable_seconds
    FROM unnest($1, $2, $3) AS wanted (org_id, tier, month)
    JOIN monthly_usage AS usage ON usage.org_id = wanted.org_id AND usage.tier = wanted.tier
        AND usage.month = make_date((wanted.month / 12)::integer, (wanted.month % 12)::integer + 1, 1)
    """,
    ("int8[]", "text[]", "int8[]"),
)

# Once for an org, tier and month: as its first call is priced by steps, under the org's lock. By the primary key, from the day
# before the month on: no call is posted longer before its start than clocks are apart (`db.ledger.prices.CLOCKS_APART`).
FILL_USAGE: Final = Statement(
    "fill_usage",
    """
    SELECT wanted.org_id, wanted.tier, wanted.month, used.seconds
    FROM unnest($1, $2, $3) AS wanted (org_id, tier, month)
    CROSS JOIN LATERAL make_timestamptz((wanted.month / 12)::integer, (wanted.month % 12)::integer + 1, 1, 0, 0, 0, 'UTC')
        AS begins
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(billable_seconds), 0)::bigint AS seconds FROM transactions
        WHERE transactions.org_id = wanted.org_id AND kind = 'debit' AND transactions.tier = wanted.tier
            AND id >= first_transaction_since(wanted.org_id, begins - interval '1 day')
            AND ended_at - duration_us * interval '1 microsecond' >= begins
            AND ended_at - duration_us * interval '1 microsecond'
                < (begins AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'
    ) AS used
    """,
    ("int8[]", "text[]", "int8[]"),
)

# Goes with the COMMIT, before the accounts, where use was counted. In order of the key; the orgs are locked already.
WRITE_USAGE: Final = Statement(
    "write_usage",
    """
    INSERT INTO monthly_usage (org_id, tier, month, billable_seconds)
    SELECT org_id, tier, make_date((month / 12)::integer, (month % 12)::integer + 1, 1), seconds
    FROM unnest($1, $2, $3, $4) AS used (org_id, tier, month, seconds)
    ON CONFLICT (org_id, tier, month) DO UPDATE SET billable_seconds = excluded.billable_seconds
    """,
    ("int8[]", "text[]", "int8[]", "int8[]"),
)

# Only where LOCK_FREE_ACCOUNTS has passed some over: whether they are held, or not there. Locks nothing; by the primary key.
EXISTING_ACCOUNTS: Final = Statement(
    "existing_accounts", "SELECT org_id FROM accounts WHERE org_id = ANY($1)", ("int8[]",)
)

# One row for each debit, in the order in which debit_rows.py packs them. Under the locks. A debit is in two of the table's
# indexes: the primary key and transactions_call_key.
COPY_DEBITS: Final = f"COPY transactions ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
COPY_STEPPED_DEBITS: Final = (
    f"COPY transactions ({', '.join((*COLUMNS, *STEP_COLUMNS))}) FROM STDIN (FORMAT BINARY)"
)
"""Where any of a batch was priced by steps."""

# Goes with the COMMIT where no reload is asked for. The rows are locked already; by the primary key. It changes no column that
# has an index, so that Postgres can leave the indexes alone (HOT). A suspended org's change says that whoever makes it knows:
# Postgres refuses one that doesn't.
UPDATE_ACCOUNTS: Final = Statement(
    "update_accounts",
    """
    UPDATE accounts
    SET balance_cents = change.balance_cents, version = change.version,
        transaction_count = change.transaction_count, last_posted_at = change.posted_at,
        suspended_version = CASE WHEN suspended_at IS NOT NULL THEN change.version END
    FROM unnest($1, $2, $3, $4, $5) AS change (org_id, balance_cents, version, transaction_count, posted_at)
    WHERE accounts.org_id = change.org_id
    """,
    ("int8[]", "int8[]", "int8[]", "int8[]", "timestamptz[]"),
)

# For each event of a batch that can't be billed, in the batch's transaction. Once per stream entry, by the unique key of
# (stream_id, raw_sha256): a batch that comes again, after a crash before its ack, finds its rejections there.
KEEP_REJECTED: Final = """
    INSERT INTO rejected_events (stream_id, reason, detail, raw, raw_length_bytes, raw_sha256, received_at)
    VALUES (%s, %s, %s, %s, %s, %s, metering_now())
    ON CONFLICT (stream_id, raw_sha256) DO NOTHING
"""

# Gates beside balances (balances.py): the reconciler, for every page of orgs.

# Locks nothing; by the primary key.
READ_BALANCES: Final = """
    SELECT org_id, balance_cents, version, suspended_at IS NOT NULL, max_concurrent_calls FROM accounts
    WHERE org_id = ANY(%s::bigint[]) ORDER BY org_id
"""

# Only after a restore. Skips locked ones: a page of orgs must not wait for whoever holds one of them. Sorted, as everywhere.
LOCK_FREE_BALANCES: Final = """
    SELECT org_id, balance_cents, version, suspended_at IS NOT NULL, max_concurrent_calls FROM accounts
    WHERE org_id = ANY(%s::bigint[]) ORDER BY org_id FOR NO KEY UPDATE SKIP LOCKED
"""

# What that has locked.
RAISE_VERSIONS: Final = """
    UPDATE accounts
    SET version = raised.version, suspended_version = CASE WHEN suspended_at IS NOT NULL THEN raised.version END
    FROM unnest(%s::bigint[], %s::bigint[]) AS raised (org_id, version)
    WHERE accounts.org_id = raised.org_id
"""

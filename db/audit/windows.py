"""What of the ledger each invariant has to see so that nothing new escapes it, without looking at everything again.

An org's transactions are only ever added, under its lock: so id order is the order of commits, and all that is new in an org has
a higher id than what was there. What was found right once needs no second look, if it is vouched for by a row of its own: the
*opening*, with the balance, the count and the time to which the org's history had come (`db/models/audit.py`). Each invariant
is the same SQL as in a full audit; only the names `transactions`, `accounts` and `payment_attempts` mean something smaller.
"""

from typing import Final

from metering.runtime.names import table

# The tables themselves, where the plain names mean the smaller things below.
_TRANSACTIONS: Final = table("transactions")
_ACCOUNTS: Final = table("accounts")
_PAYMENT_ATTEMPTS: Final = table("payment_attempts")

STEPS: Final = frozenset(
    {
        *("balance_is_sum", "transactions_counted", "balance_is_last"),
        *("chain_unbroken", "order_of_time", "last_posted_at_is_newest", "posted_by_now"),
    }
)
"""Each new transaction follows from the one before it, and the account from the last."""
ROWS: Final = frozenset(
    {"whole_milliseconds", "sign_of_kind", "debit_priced_again", "price_in_force", "description_matches"}
)
"""Each new transaction is right in itself."""
WHOLE_ONLY: Final = frozenset({"usage_is_sum", "used_before", "daily_usage_is_sum", "repricing_adjusted"})
"""They need all of a month's debits, or an org's: looked at in full audits alone. That each new debit fits what it stores is in
`ROWS`."""
KEYS: Final = frozenset({"call_billed_once", "source_once"})
"""No new transaction repeats one of all that there are."""
ORPHANS: Final = frozenset({"account_exists"})
"""No transaction lies between the accounts there are."""
PAYMENTS: Final = frozenset(
    {"attempt_credited", "credit_has_attempt", "refund_has_credit", "month_within_limit", "customer_in_org"}
)
"""All payments of an org fit together, old and new: they are few."""
OWNERSHIP: Final = frozenset({"payment_in_customers_org"})
"""No payment of an org is another's: attempts and customers of all orgs are looked up, by their keys."""
OPEN_ATTEMPTS: Final = frozenset({"one_open_reload", "attempt_watched", "attempt_ends"})
"""Of all attempts that are open, by the indexes that the reconciler uses."""
EVENTS: Final = frozenset({"stripe_event_handled"})
"""Of all events that are set aside: they are few, and no org's."""

# Orgs to look at, and how many transactions are new in each. One whose newest transaction is older than was seen before has lost
# some: it is looked at whole, as are suspects and those never looked at. A probe of the primary key per org finds new rows even
# where somebody wrote them without touching the account.
ORGS_TO_AUDIT: Final = """
    SELECT accounts.org_id, accounts.transaction_count
        - CASE WHEN newest.id >= audited.transaction_id THEN audited.transaction_count ELSE 0 END AS new_count
    FROM accounts
    LEFT JOIN audited_accounts AS audited USING (org_id)
    LEFT JOIN audit_suspects AS suspect USING (org_id)
    LEFT JOIN LATERAL (
        SELECT id FROM transactions WHERE transactions.org_id = accounts.org_id ORDER BY transactions.org_id DESC, id DESC LIMIT 1
    ) AS newest ON true
    WHERE accounts.org_id > :after AND (
        audited.org_id IS NULL OR suspect.org_id IS NOT NULL OR newest.id IS DISTINCT FROM audited.transaction_id
        OR (accounts.balance_cents, accounts.version, accounts.transaction_count, accounts.last_posted_at)
            IS DISTINCT FROM
            (audited.balance_cents, audited.version, audited.transaction_count, audited.last_posted_at)
    )
    ORDER BY accounts.org_id LIMIT :limit
"""

# The window: accounts that changed, with where each was audited to; what is new since; and an opening for each. OFFSET 0 keeps
# the planner on the index, org by org: expecting a third of each history to be new, it would read the whole table.
MAKE_WINDOW: Final = (
    """
    CREATE TEMP TABLE audit_window ON COMMIT DROP AS
    SELECT accounts.*, newest.id AS newest_id, audited.transaction_id AS audited_id,
        audited.balance_cents AS audited_cents, audited.transaction_count AS audited_count,
        audited.last_posted_at AS audited_posted_at
    FROM unnest(CAST(:org_ids AS bigint[])) AS wanted (org_id)
    JOIN accounts USING (org_id)
    LEFT JOIN LATERAL (
        SELECT id FROM transactions WHERE transactions.org_id = accounts.org_id ORDER BY transactions.org_id DESC, id DESC LIMIT 1
    ) AS newest ON true
    LEFT JOIN audited_accounts AS audited ON audited.org_id = accounts.org_id AND newest.id >= audited.transaction_id
        AND NOT EXISTS (SELECT FROM audit_suspects AS suspect WHERE suspect.org_id = accounts.org_id)
    """,
    "CREATE TEMP TABLE audit_fresh (LIKE transactions) ON COMMIT DROP",
    """
    INSERT INTO audit_fresh
    SELECT fresh.* FROM audit_window AS changed
    CROSS JOIN LATERAL (
        SELECT * FROM transactions WHERE transactions.org_id = changed.org_id AND id > coalesce(changed.audited_id, -1) OFFSET 0
    ) AS fresh
    """,
    "CREATE TEMP TABLE audit_openings (LIKE transactions) ON COMMIT DROP",
    """
    INSERT INTO audit_openings (org_id, id, kind, amount_cents, balance_after_cents, created_at, description)
    SELECT org_id, audited_id, 'opening', audited_cents, audited_cents, audited_posted_at, '' FROM audit_window
    WHERE audited_id IS NOT NULL
    """,
    "CREATE INDEX ON audit_fresh (org_id, id)",
    "CREATE INDEX ON audit_openings (org_id, id)",
    "ANALYZE audit_window, audit_fresh, audit_openings",
)

SHADOWS_OF_STEPS: Final = """
    transactions AS NOT MATERIALIZED (SELECT * FROM audit_fresh UNION ALL SELECT * FROM audit_openings),
    accounts AS NOT MATERIALIZED (
        SELECT org_id, balance_cents, last_posted_at, transaction_count - coalesce(audited_count - 1, 0) AS transaction_count
        FROM audit_window
    ),
"""
"""The opening stands for all that it vouches for, so the account's count is made to fit."""

SHADOWS_OF_ROWS: Final = "transactions AS NOT MATERIALIZED (SELECT * FROM audit_fresh),"

SHADOWS_OF_KEYS: Final = f"""
    transactions AS NOT MATERIALIZED (
        SELECT there.* FROM (SELECT DISTINCT org_id, call_id FROM audit_fresh WHERE call_id IS NOT NULL) AS new
        CROSS JOIN LATERAL (
            SELECT * FROM {_TRANSACTIONS} AS each WHERE each.org_id = new.org_id AND each.call_id = new.call_id
        ) AS there
        UNION ALL
        SELECT there.* FROM (SELECT DISTINCT org_id, kind, source_key FROM audit_fresh WHERE source_key IS NOT NULL) AS new
        CROSS JOIN LATERAL (
            SELECT * FROM {_TRANSACTIONS} AS each
            WHERE each.org_id = new.org_id AND each.kind = new.kind AND each.source_key = new.source_key
        ) AS there
    ),
"""

SHADOWS_OF_ORPHANS: Final = f"""
    transactions AS NOT MATERIALIZED (
        SELECT there.* FROM (
            SELECT org_id AS low, lead(org_id) OVER (ORDER BY org_id) AS high FROM {_ACCOUNTS}
        ) AS gap
        CROSS JOIN LATERAL (
            SELECT * FROM {_TRANSACTIONS} AS each WHERE each.org_id > gap.low AND each.org_id < gap.high
        ) AS there
        WHERE gap.high - 1 > gap.low
        UNION ALL
        SELECT * FROM {_TRANSACTIONS} WHERE org_id < (SELECT coalesce(min(org_id), 0) FROM {_ACCOUNTS})
        UNION ALL
        SELECT * FROM {_TRANSACTIONS} WHERE org_id > (SELECT coalesce(max(org_id), -1) FROM {_ACCOUNTS})
    ),
"""

SHADOWS_OF_OWNERSHIP: Final = f"""
    transactions AS NOT MATERIALIZED (
        SELECT * FROM {_TRANSACTIONS}
        WHERE org_id = ANY(CAST(:org_ids AS bigint[])) AND kind <> 'debit'
    ),
"""

SHADOWS_OF_PAYMENTS: Final = f"""
    transactions AS NOT MATERIALIZED (
        SELECT * FROM {_TRANSACTIONS}
        WHERE org_id = ANY(CAST(:org_ids AS bigint[])) AND kind <> 'debit'
    ),
    payment_attempts AS NOT MATERIALIZED (
        SELECT * FROM {_PAYMENT_ATTEMPTS} WHERE org_id = ANY(CAST(:org_ids AS bigint[]))
    ),
"""

SHADOWS_OF_ORGS: Final = f"""
    transactions AS NOT MATERIALIZED (SELECT * FROM {_TRANSACTIONS} WHERE org_id = ANY(CAST(:org_ids AS bigint[]))),
    accounts AS NOT MATERIALIZED (SELECT * FROM {_ACCOUNTS} WHERE org_id = ANY(CAST(:org_ids AS bigint[]))),
"""
"""Some orgs' whole history: what is wrong in it is told as a full audit tells it."""

ORGS_WITH_FRESH_MONEY: Final = """
    SELECT DISTINCT org_id FROM audit_fresh WHERE kind IS DISTINCT FROM 'debit' OR source_key IS NOT NULL
    UNION
    SELECT org_id FROM audit_suspects JOIN audit_window USING (org_id)
"""

# Every change of an attempt writes one of these times; without an index, but attempts are few beside debits.
ORGS_WITH_TOUCHED_ATTEMPTS: Final = """
    SELECT DISTINCT org_id FROM payment_attempts
    WHERE greatest(created_at, looked_at, finished_at, answered_at, last_sent_at)
        >= coalesce(CAST(:since AS timestamptz), '-infinity')
    UNION
    SELECT org_id FROM audit_suspects
    ORDER BY org_id
"""

VOUCH: Final = """
    INSERT INTO audited_accounts (org_id, transaction_id, balance_cents, version, transaction_count, last_posted_at)
    SELECT org_id, newest_id, balance_cents, version, transaction_count, last_posted_at FROM audit_window
    WHERE org_id <> ALL(CAST(:broken AS bigint[]))
    ON CONFLICT (org_id) DO UPDATE SET transaction_id = excluded.transaction_id, balance_cents = excluded.balance_cents,
        version = excluded.version, transaction_count = excluded.transaction_count, last_posted_at = excluded.last_posted_at
"""

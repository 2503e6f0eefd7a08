"""What must always be true of the ledger (docs/reference/money-rules.md)."""

from typing import Final

from db.audit.invariants.invariant import Invariant

_BALANCE_IS_SUM: Final = Invariant(
    "balance_is_sum",
    "An account's balance is the sum of its transactions, and 0 without any.",
    """
    SELECT org_id, NULL, format('the balance is %s cents, its %s transactions make %s',
        balance_cents, coalesce(number, 0), coalesce(sum_cents, 0))
    FROM accounts
    LEFT JOIN (
        SELECT org_id, count(*) AS number, sum(amount_cents) AS sum_cents FROM transactions GROUP BY org_id
    ) AS ledger USING (org_id)
    WHERE balance_cents <> coalesce(sum_cents, 0)
    """,
)

_TRANSACTIONS_COUNTED: Final = Invariant(
    "transactions_counted",
    "An account says how many transactions there are: so that one of 0 cents can't vanish unseen.",
    """
    SELECT org_id, NULL, format('the account counts %s transactions, there are %s', transaction_count, coalesce(number, 0))
    FROM accounts
    LEFT JOIN (SELECT org_id, count(*) AS number FROM transactions GROUP BY org_id) AS ledger USING (org_id)
    WHERE transaction_count <> coalesce(number, 0)
    """,
)

_BALANCE_IS_LAST: Final = Invariant(
    "balance_is_last",
    "An account's balance is the balance after its last transaction.",
    """
    SELECT org_id, id, format('the balance is %s cents; after the last transaction, %s, it was %s',
        balance_cents, id, balance_after_cents)
    FROM accounts
    CROSS JOIN LATERAL (
        SELECT id, balance_after_cents FROM transactions
        WHERE transactions.org_id = accounts.org_id ORDER BY id DESC LIMIT 1
    ) AS last
    WHERE balance_cents <> balance_after_cents
    """,
)

_CHAIN_UNBROKEN: Final = Invariant(
    "chain_unbroken",
    "The balance after a transaction is the one after the org's transaction before it, plus the amount; it starts at 0.",
    """
    SELECT org_id, id, format('transaction %s: the balance before it was %s cents, its amount is %s, the balance after it %s',
        id, before_cents, amount_cents, balance_after_cents)
    FROM (
        SELECT org_id, id, amount_cents, balance_after_cents,
            lag(balance_after_cents, 1, 0::bigint) OVER (PARTITION BY org_id ORDER BY id) AS before_cents
        FROM transactions
    ) AS step
    WHERE before_cents::numeric + amount_cents <> balance_after_cents
    """,
)

_ORDER_OF_TIME: Final = Invariant(
    "order_of_time",
    "In the order of their ids, an org's transactions never go back in time.",
    """
    SELECT org_id, id, format('transaction %s is of %s, the one before it of %s', id, created_at, before_at)
    FROM (
        SELECT org_id, id, created_at, lag(created_at) OVER (PARTITION BY org_id ORDER BY id) AS before_at
        FROM transactions
    ) AS step
    WHERE created_at < before_at
    """,
)

_LAST_POSTED_AT_IS_NEWEST: Final = Invariant(
    "last_posted_at_is_newest",
    "An account was last posted to at the time of its newest transaction, and never without any.",
    """
    SELECT org_id, NULL, format('the account was last posted to at %s, its newest transaction is of %s',
        coalesce(last_posted_at::text, 'no time'), coalesce(newest_at::text, 'no time'))
    FROM accounts
    LEFT JOIN (
        SELECT org_id, max(created_at) AS newest_at FROM transactions GROUP BY org_id
    ) AS ledger USING (org_id)
    WHERE last_posted_at IS DISTINCT FROM newest_at
    """,
)

# Postgres's clock may have been put back a little, by whoever keeps it right or by a switch-over.
_POSTED_BY_NOW: Final = Invariant(
    "posted_by_now",
    "No transaction is of a time to come, by Postgres's clock (docs/reference/money-rules.md#balances).",
    """
    SELECT org_id, NULL, format('the newest transaction is of %s, which is yet to come; until then new ones get that time too',
        last_posted_at)
    FROM accounts
    WHERE last_posted_at > (SELECT metering_now()) + interval '30 seconds'
    """,
)

_WHOLE_MILLISECONDS: Final = Invariant(
    "whole_milliseconds",
    "Times of posting are whole milliseconds (docs/reference/money-rules.md#times-and-months).",
    """
    SELECT org_id, id, format('transaction %s is of %s', id, created_at)
    FROM transactions
    WHERE created_at <> date_trunc('milliseconds', created_at)
    """,
)

_ACCOUNT_EXISTS: Final = Invariant(
    "account_exists",
    "Every transaction belongs to an account.",
    """
    SELECT org_id, min(id), format('%s transactions from %s on belong to no account', count(*), min(id))
    FROM transactions
    WHERE NOT EXISTS (SELECT FROM accounts WHERE accounts.org_id = transactions.org_id)
    GROUP BY org_id
    """,
)

_CALL_BILLED_ONCE: Final = Invariant(
    "call_billed_once",
    "No call of an org is billed twice (docs/reference/money-rules.md#one-call-costs-once).",
    """
    SELECT org_id, NULL, format('call %s is billed %s times', call_id, count(*))
    FROM transactions
    WHERE call_id IS NOT NULL
    GROUP BY org_id, call_id
    HAVING count(*) > 1
    """,
)

_SOURCE_ONCE: Final = Invariant(
    "source_once",
    "No credit, refund or adjustment of an org is written twice (docs/reference/money-rules.md#credits).",
    """
    SELECT org_id, NULL, format('the %s %L is written %s times', kind, source_key, count(*))
    FROM transactions
    WHERE source_key IS NOT NULL
    GROUP BY org_id, kind, source_key
    HAVING count(*) > 1
    """,
)

_SIGN_OF_KIND: Final = Invariant(
    "sign_of_kind",
    "Amounts have their kind's sign; a debit names its call, any other kind its source"
    " (docs/reference/money-rules.md#kinds-and-signs).",
    """
    SELECT org_id, id, format('transaction %s is a %s of %s cents for %s and %s', id, kind, amount_cents,
        coalesce('call ' || call_id, 'no call'), coalesce('source ' || quote_literal(source_key), 'no source'))
    FROM transactions
    WHERE (
        CASE kind
            WHEN 'debit' THEN amount_cents <= 0
            WHEN 'credit' THEN amount_cents > 0
            WHEN 'refund' THEN amount_cents < 0
            WHEN 'adjustment' THEN amount_cents <> 0
        END
        AND (call_id IS NOT NULL) = (kind = 'debit')
        AND (source_key IS NOT NULL) = (kind <> 'debit')
    ) IS NOT TRUE
    """,
)

LEDGER_INVARIANTS: Final = (
    *(_BALANCE_IS_SUM, _TRANSACTIONS_COUNTED, _BALANCE_IS_LAST, _CHAIN_UNBROKEN),
    *(_ORDER_OF_TIME, _LAST_POSTED_AT_IS_NEWEST, _POSTED_BY_NOW, _WHOLE_MILLISECONDS),
    *(_ACCOUNT_EXISTS, _CALL_BILLED_ONCE, _SOURCE_ONCE, _SIGN_OF_KIND),
)

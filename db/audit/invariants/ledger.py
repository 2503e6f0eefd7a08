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

# In bigint, four times as fast as in numeric. What lies outside the limits of the money rules and of prices is not computed with
# (CASE alone promises that) and ends as NULL, a violation; within them the largest product is 7 * 10^17.
# One cent is 600,000 sixtieths of a micro-USD; adding half of that before the division rounds half up.
_DEBIT_PRICED_AGAIN: Final = Invariant(
    "debit_priced_again",
    "Every debit, priced again from what it stores, costs the same (docs/reference/money-rules.md#rounding).",
    """
    SELECT org_id, id, format('transaction %s, call %s: %s and %s cents are stored, its duration and price make %s and %s cents',
        id, call_id, coalesce(billable_seconds || ' s', 'no time'), amount_cents,
        coalesce(seconds || ' s', 'no time'), coalesce((-charge_cents)::text, 'no'))
    FROM (
        SELECT *, CASE WHEN seconds IS NOT NULL THEN
            (connect_fee_microusd * 60 + seconds * rate_microusd_per_minute + 300000) / 600000
        END AS charge_cents
        FROM (
            SELECT *, CASE
                WHEN past_first_us <= 0 THEN increment_first_s
                WHEN past_first_us > 0 THEN
                    increment_first_s + increment_next_s * ((past_first_us - 1) / (increment_next_s * 1000000) + 1)
            END AS seconds
            FROM (
                SELECT *, CASE
                    WHEN duration_us BETWEEN 1 AND 604800000000 AND minimum_s BETWEEN 0 AND 604800
                        AND increment_first_s BETWEEN 1 AND 86400 AND increment_next_s BETWEEN 1 AND 86400
                        AND rate_microusd_per_minute BETWEEN 0 AND 1000000000000
                        AND connect_fee_microusd BETWEEN 0 AND 1000000000000
                    THEN greatest(duration_us, minimum_s * 1000000) - increment_first_s * 1000000
                END AS past_first_us
                FROM transactions
                WHERE kind = 'debit'
            ) AS debit
        ) AS debit
    ) AS debit
    WHERE billable_seconds IS DISTINCT FROM seconds OR amount_cents IS DISTINCT FROM -charge_cents
    """,
)

# An event may be up to 5 minutes ahead of the clock, the start of its call too, and a price that reaches back to that start can
# have been set since. Only there may a debit and the price book differ: otherwise a later price starts 60 s after it was set.
_PRICE_IN_FORCE: Final = Invariant(
    "price_in_force",
    "Every debit bears the price that its org had for its tier when the call started"
    " (docs/reference/money-rules.md#which-price-counts).",
    """
    WITH period AS (
        SELECT tier, org_id, coalesce(in_force_from, '-infinity') AS from_at,
            coalesce(lead(in_force_from) OVER (PARTITION BY tier, org_id ORDER BY in_force_from NULLS FIRST), 'infinity')
                AS until_at,
            rate_microusd_per_minute IS NOT NULL AS is_price,
            (rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd) AS terms
        FROM prices
        WHERE cancelled_at IS NULL
    )
    SELECT debit.org_id, id, format('transaction %s, call %s: %s are stored, tier %s had %s at %s',
        id, call_id, debit.terms, coalesce(debit.tier, 'none'),
        coalesce(CASE WHEN own.is_price THEN own.terms ELSE period.terms END::text, 'no price'),
        coalesce(started_at::text, 'no time'))
    FROM (
        SELECT org_id, id, call_id, tier, created_at,
            (rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd) AS terms,
            CASE WHEN duration_us BETWEEN 0 AND 604800000000 AND ended_at BETWEEN '0001-01-01' AND '9999-12-31'
                THEN ended_at - duration_us * interval '1 microsecond'
            END AS started_at
        FROM transactions
        WHERE kind = 'debit'
    ) AS debit
    LEFT JOIN period AS own ON own.tier = debit.tier AND own.org_id = debit.org_id AND own.is_price
        AND started_at >= own.from_at AND started_at < own.until_at
    LEFT JOIN period ON period.tier = debit.tier AND period.org_id IS NULL
        AND started_at >= period.from_at AND started_at < period.until_at
    WHERE (started_at > created_at AND started_at - interval '5 minutes' <= created_at) IS NOT TRUE
        AND debit.terms IS DISTINCT FROM CASE WHEN own.is_price THEN own.terms ELSE period.terms END
    """,
)

_DESCRIPTION_MATCHES: Final = Invariant(
    "description_matches",
    "Every debit's description says what was charged (docs/reference/money-rules.md#descriptions).",
    """
    SELECT org_id, id, format('transaction %s is described as %L, not as %L', id, description, line)
    FROM (
        SELECT *, 'Call billing: ' || CASE
            WHEN (increment_first_s, increment_next_s) <> (60, 60) THEN
                billable_seconds || CASE billable_seconds WHEN 1 THEN ' second' ELSE ' seconds' END || ' × $' || rate || '/min'
            ELSE
                billable_seconds / 60 || CASE billable_seconds WHEN 60 THEN ' minute' ELSE ' minutes' END || ' × $' || rate
        END AS line
        FROM (
            SELECT *, round(rate_microusd_per_minute * 0.000001, greatest(2, min_scale(rate_microusd_per_minute * 0.000001)))
                AS rate
            FROM transactions
            WHERE kind = 'debit'
        ) AS debit
    ) AS debit
    WHERE description IS DISTINCT FROM line
    """,
)

LEDGER_INVARIANTS: Final = (
    *(_BALANCE_IS_SUM, _TRANSACTIONS_COUNTED, _BALANCE_IS_LAST, _CHAIN_UNBROKEN),
    *(_ORDER_OF_TIME, _LAST_POSTED_AT_IS_NEWEST, _POSTED_BY_NOW, _WHOLE_MILLISECONDS),
    *(_ACCOUNT_EXISTS, _CALL_BILLED_ONCE, _SOURCE_ONCE, _SIGN_OF_KIND),
    *(_DEBIT_PRICED_AGAIN, _PRICE_IN_FORCE, _DESCRIPTION_MATCHES),
)

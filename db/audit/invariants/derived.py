"""What is derived from debits, and must always agree with them: daily usage, and what re-pricings have adjusted."""

from typing import Final

from db.audit.invariants.invariant import Invariant

# A debit that names no tier, time or seconds, or impossible ones, is damage, which other invariants name. It is counted nowhere,
# here and by db.ledger.daily_usage: it must not keep all others from being counted.
DAY: Final = """
    CASE WHEN duration_us BETWEEN 1 AND 604800000000 AND ended_at BETWEEN '0001-01-09' AND '9999-12-31'
        AND billable_seconds BETWEEN 0 AND 1000000000000 AND amount_cents BETWEEN -1000000000000000 AND 0 AND tier IS NOT NULL
        THEN CAST((ended_at - duration_us * interval '1 microsecond') AT TIME ZONE 'UTC' AS date)
    END
"""
"""The UTC day on which a debit's call started; NULL where that makes no sense."""

_DAILY_USAGE_IS_SUM: Final = Invariant(
    "daily_usage_is_sum",
    "What is counted of an org's calls by tier and day is the sum of its debits, up to where its cursor stands.",
    f"""
    SELECT org_id, NULL, format(
        'of tier %s on %s %s calls, %s s and %s cents are counted, the debits up to %s make %s, %s and %s',
        tier, day, coalesce(counted.calls, 0), coalesce(counted.billable_seconds, 0), coalesce(counted.billed_cents, 0),
        coalesce(cursors.transaction_id::text, 'none'), coalesce(debit.calls, 0), coalesce(debit.seconds, 0),
        coalesce(debit.cents, 0))
    FROM daily_usage AS counted
    FULL JOIN (
        SELECT org_id, tier, day, count(*) AS calls, sum(billable_seconds) AS seconds, -sum(amount_cents) AS cents
        FROM (
            SELECT transactions.org_id, tier, billable_seconds, amount_cents, {DAY} AS day
            FROM transactions JOIN daily_usage_cursors AS cursors ON cursors.org_id = transactions.org_id
                AND transactions.id <= cursors.transaction_id
            WHERE kind = 'debit'
        ) AS debit
        WHERE day IS NOT NULL
        GROUP BY org_id, tier, day
    ) AS debit USING (org_id, tier, day)
    LEFT JOIN daily_usage_cursors AS cursors USING (org_id)
    WHERE (counted.calls, counted.billable_seconds::numeric, counted.billed_cents::numeric)
        IS DISTINCT FROM (debit.calls, debit.seconds, debit.cents)
    UNION ALL
    SELECT org_id, NULL, format('daily usage has come to transaction %s as the %s-th, it is the %s-th',
        transaction_id, transaction_count, coalesce(number, 0))
    FROM daily_usage_cursors AS cursors
    LEFT JOIN (
        SELECT transactions.org_id, count(*) AS number
        FROM transactions JOIN daily_usage_cursors AS cursors ON cursors.org_id = transactions.org_id
            AND transactions.id <= cursors.transaction_id
        GROUP BY transactions.org_id
    ) AS ledger USING (org_id)
    WHERE transaction_count <> coalesce(number, 0)
    """,  # noqa: S608 - our own words
)

_REPRICING_ADJUSTED: Final = Invariant(
    "repricing_adjusted",
    "Each org's difference by a re-pricing is one adjustment, and no other bears its key"
    " (docs/reference/money-rules.md#re-pricing).",
    """
    SELECT org_id, transaction_id, format('the re-pricing %L found %s cents billed and makes them %s; its adjustment %s is of %s',
        key, billed_cents, repriced_cents, coalesce(transaction_id::text, 'none'), coalesce(amount_cents::text, 'no'))
    FROM (
        SELECT seen_to.*, repricings.key, transactions.amount_cents, transactions.source_key,
            'reprice:' || repricings.id || ':' || repricings.key AS wanted_key
        FROM repriced_orgs AS seen_to
        JOIN repricings ON repricings.id = seen_to.repricing_id
        LEFT JOIN transactions ON transactions.org_id = seen_to.org_id AND transactions.id = seen_to.transaction_id
            AND transactions.kind = 'adjustment'
    ) AS seen_to
    WHERE coalesce(amount_cents, 0)::numeric <> billed_cents::numeric - repriced_cents
        OR transaction_id IS NOT NULL AND source_key IS DISTINCT FROM wanted_key
    UNION ALL
    SELECT org_id, id, format('transaction %s of %s cents bears the key of a re-pricing, %L, that has not made it',
        id, amount_cents, source_key)
    FROM transactions
    WHERE kind = 'adjustment' AND source_key LIKE 'reprice:%' AND NOT EXISTS (
        SELECT FROM repriced_orgs WHERE repriced_orgs.org_id = transactions.org_id AND transaction_id = transactions.id
    )
    """,
)

DERIVED_INVARIANTS: Final = (_DAILY_USAGE_IS_SUM, _REPRICING_ADJUSTED)

"""What must always be true of what calls were charged (docs/reference/money-rules.md)."""

from typing import Final

from db.audit.invariants.invariant import Invariant

_PARTS: Final = """
    SELECT n, CASE WHEN n = (cardinality(steps) + 1) / 2 THEN steps[2 * n - 1] ELSE steps[2 * n] END AS rate,
        CASE WHEN n = (cardinality(steps) + 1) / 2 THEN BEFORE + SECONDS ELSE least(BEFORE + SECONDS, steps[2 * n - 1]) END
            - greatest(BEFORE, CASE WHEN n > 1 THEN steps[2 * n - 3] ELSE 0 END) AS seconds
    FROM generate_series(1, (cardinality(steps) + 1) / 2) AS n
"""


def _parts(before: str, seconds: str) -> str:
    """A call's seconds at each step, 0 or less at those that it doesn't touch."""
    return _PARTS.replace("BEFORE", before).replace("SECONDS", seconds)


# In bigint, four times as fast as in numeric. What lies outside the limits of the money rules and of prices is not computed with
# (CASE alone promises that) and ends as NULL, a violation; within them the largest product is 7 * 10^17.
# The same goes for steps, whose parts make up the call's seconds, because they must ascend.
# One cent is 600,000 sixtieths of a micro-USD; adding half of that before the division rounds half up.
_DEBIT_PRICED_AGAIN: Final = Invariant(
    "debit_priced_again",
    "Every debit, priced again from what it stores, costs the same (docs/reference/money-rules.md#rounding).",
    """
    SELECT org_id, id, format('transaction %s, call %s: %s and %s cents are stored, its duration and price make %s and %s cents',
        id, call_id, coalesce(billable_seconds || ' s', 'no time'), amount_cents,
        coalesce(seconds || ' s', 'no time'), coalesce((-charge_cents)::text, 'no'))
    FROM (
        SELECT *, CASE
            WHEN seconds IS NULL THEN NULL
            WHEN steps IS NULL AND used_before_s IS NULL THEN
                (connect_fee_microusd * 60 + seconds * rate_microusd_per_minute + 300000) / 600000
            WHEN used_before_s BETWEEN 0 AND 1000000000000 AND array_ndims(steps) = 1 AND array_lower(steps, 1) = 1
                AND cardinality(steps) % 2 = 1 AND steps[cardinality(steps)] = rate_microusd_per_minute
                AND NOT EXISTS (
                    SELECT FROM unnest(steps) WITH ORDINALITY AS step (value, place)
                    WHERE (value BETWEEN 0 AND 1000000000000) IS NOT TRUE
                        OR place % 2 = 1 AND place > 1 AND place < cardinality(steps) AND value <= steps[place - 2]
                )
            THEN (
                connect_fee_microusd * 60 + (
                    SELECT sum(step.seconds * rate) FROM (PARTS) AS step WHERE step.seconds > 0
                )::bigint + 300000
            ) / 600000
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
    """.replace("PARTS", _parts("used_before_s", "debit.seconds")),
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
            (rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd, steps) AS terms
        FROM prices
        WHERE cancelled_at IS NULL
    )
    SELECT debit.org_id, id, format('transaction %s, call %s: %s are stored, tier %s had %s at %s',
        id, call_id, debit.terms, coalesce(debit.tier, 'none'),
        coalesce(CASE WHEN own.is_price THEN own.terms ELSE period.terms END::text, 'no price'),
        coalesce(started_at::text, 'no time'))
    FROM (
        SELECT org_id, id, call_id, tier, created_at,
            (rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd, steps) AS terms,
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
            WHEN steps IS NOT NULL THEN (
                SELECT div(sum(seconds), size) || unit || CASE WHEN div(sum(seconds), size) = 1 THEN '' ELSE 's' END
                    || CASE WHEN count(*) = 1 THEN max(words)
                        ELSE ': ' || string_agg(div(seconds, size) || words, ', ' ORDER BY first_n) END
                FROM (
                    SELECT first_n, seconds, size, CASE size WHEN 60 THEN ' minute' ELSE ' second' END AS unit,
                        CASE rate WHEN 0 THEN ' included' ELSE ' × $'
                            || round(rate * 0.000001, greatest(2, min_scale(rate * 0.000001)))
                            || CASE size WHEN 60 THEN '' ELSE '/min' END END AS words
                    FROM (
                        SELECT *, CASE
                            WHEN (increment_first_s, increment_next_s) = (60, 60) AND bool_and(seconds % 60 = 0) OVER () THEN 60
                            ELSE 1 END AS size
                        FROM (
                            SELECT min(n) AS first_n, sum(seconds) AS seconds, rate FROM (
                                SELECT *, row_number() OVER (ORDER BY n) - row_number() OVER (PARTITION BY rate ORDER BY n)
                                    AS island -- of steps that follow each other with the same rate
                                FROM (PARTS) AS step
                                WHERE step.seconds > 0
                            ) AS step
                            GROUP BY rate, island
                        ) AS part
                    ) AS part
                ) AS part
                GROUP BY size, unit
            )
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
    """.replace("PARTS", _parts("used_before_s::numeric", "billable_seconds")),
)

# A debit whose times make no sense is in no month, and found by others.
_MONTH: Final = """
    CASE WHEN duration_us BETWEEN 0 AND 604800000000 AND ended_at BETWEEN '0001-01-02' AND '9999-12-31' THEN
        date_trunc('month', (ended_at - duration_us * interval '1 microsecond') AT TIME ZONE 'UTC')::date
    END AS month
"""

_USAGE_IS_SUM: Final = Invariant(
    "usage_is_sum",
    "What an org used of a tier in a month is the sum of its debits' billable seconds, counted where one was priced by steps"
    " (docs/reference/money-rules.md#steps).",
    """
    SELECT org_id, NULL, format('of tier %s in the month from %s on %s s are counted as used, the debits make %s',
        tier, month, billable_seconds, coalesce(seconds, 0))
    FROM monthly_usage
    LEFT JOIN (
        SELECT org_id, tier, month, sum(billable_seconds) AS seconds
        FROM (
            SELECT org_id, tier, billable_seconds, MONTH FROM transactions
            WHERE kind = 'debit' AND (org_id, tier) IN (SELECT org_id, tier FROM monthly_usage)
        ) AS debit
        GROUP BY org_id, tier, month
    ) AS used USING (org_id, tier, month)
    WHERE billable_seconds IS DISTINCT FROM coalesce(seconds, 0)
    UNION ALL
    SELECT org_id, min(id), format('of tier %s in the month from %s on debits were priced by steps, nothing is counted as used',
        tier, month)
    FROM (SELECT org_id, id, tier, MONTH FROM transactions WHERE kind = 'debit' AND steps IS NOT NULL) AS debit
    WHERE NOT EXISTS (
        SELECT FROM monthly_usage AS used WHERE (used.org_id, used.tier, used.month) = (debit.org_id, debit.tier, debit.month)
    )
    GROUP BY org_id, tier, month
    """.replace("MONTH", _MONTH),
)

_USED_BEFORE: Final = Invariant(
    "used_before",
    "A debit that was priced by steps stores what the org's debits before it had used of the tier in the month"
    " (docs/reference/money-rules.md#steps).",
    """
    SELECT org_id, id, format('transaction %s, call %s: %s s are stored as used before, the debits before it make %s',
        id, call_id, coalesce(used_before_s::text, 'no'), used)
    FROM (
        SELECT *, coalesce(sum(billable_seconds) OVER (
            PARTITION BY org_id, tier, month ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AS used
        FROM (
            SELECT org_id, id, call_id, tier, billable_seconds, steps, used_before_s, MONTH FROM transactions
            WHERE kind = 'debit' AND (org_id, tier) IN (SELECT org_id, tier FROM monthly_usage)
        ) AS debit
    ) AS debit
    WHERE steps IS NOT NULL AND used_before_s IS DISTINCT FROM used
    """.replace("MONTH", _MONTH),
)

CHARGE_INVARIANTS: Final = (
    *(_DEBIT_PRICED_AGAIN, _PRICE_IN_FORCE, _DESCRIPTION_MATCHES),
    *(_USAGE_IS_SUM, _USED_BEFORE),
)

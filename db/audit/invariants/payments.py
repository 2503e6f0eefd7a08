"""What must always be true of payments (docs/reference/money-rules.md and docs/reference/auto-reload.md)."""

from typing import Final

from db.audit.invariants.invariant import Invariant

_ATTEMPT_CREDITED: Final = Invariant(
    "attempt_credited",
    "Every succeeded attempt has exactly one credit, of its amount; any other has none.",
    """
    SELECT attempt.org_id, NULL, format('attempt %s, %s, of %s cents has %s credits of %s cents',
        attempt.id, attempt.status, attempt.amount_cents, count(credit.id), coalesce(sum(credit.amount_cents), 0))
    FROM payment_attempts AS attempt
    LEFT JOIN transactions AS credit ON credit.org_id = attempt.org_id AND credit.kind = 'credit'
        AND credit.source_key = attempt.payment_intent_id
    GROUP BY attempt.org_id, attempt.id, attempt.status, attempt.amount_cents
    HAVING CASE attempt.status
        WHEN 'succeeded' THEN count(credit.id) <> 1 OR sum(credit.amount_cents) <> attempt.amount_cents
        ELSE count(credit.id) <> 0
    END
    """,
)

_CREDIT_HAS_ATTEMPT: Final = Invariant(
    "credit_has_attempt",
    "Every credit belongs to one succeeded attempt, made here or recovered from what Stripe holds.",
    """
    SELECT org_id, id, format('credit %s of %s cents, for %s, belongs to %s succeeded attempts',
        id, amount_cents, coalesce(source_key, 'nothing'), number)
    FROM transactions
    CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM payment_attempts
        WHERE payment_attempts.org_id = transactions.org_id AND payment_intent_id = source_key AND status = 'succeeded'
    ) AS attempt
    WHERE kind = 'credit' AND number <> 1
    """,
)

_REFUND_HAS_CREDIT: Final = Invariant(
    "refund_has_credit",
    "Money that went back to a card had come from it before.",
    """
    SELECT org_id, id, format('refund %s of %s cents is of %s, which was not credited before',
        id, amount_cents, coalesce(metadata ->> 'payment_intent_id', 'no payment'))
    FROM transactions AS refund
    WHERE kind = 'refund' AND NOT EXISTS (
        SELECT FROM transactions AS credit
        WHERE credit.org_id = refund.org_id AND credit.kind = 'credit' AND credit.id < refund.id
            AND credit.source_key = refund.metadata ->> 'payment_intent_id'
    )
    """,
)

# What the customer doesn't say the first attempt does. A correction counts by its key, the PaymentIntent's id.
_PAYMENT_IN_CUSTOMERS_ORG: Final = Invariant(
    "payment_in_customers_org",
    "A payment is credited to the org whose customer paid, and to no other (docs/reference/money-rules.md#credits).",
    """
    WITH misplaced AS MATERIALIZED (
        SELECT credit.org_id, credit.id, source_key, amount_cents, owner.org_id AS owner
        FROM transactions AS credit
        CROSS JOIN LATERAL (
            SELECT coalesce(stripe_customers.org_id, attempt.org_id) AS org_id
            FROM payment_attempts AS attempt
            LEFT JOIN stripe_customers ON stripe_customers.customer_id = attempt.customer_id
            WHERE attempt.payment_intent_id = credit.source_key
            ORDER BY attempt.recovered, attempt.created_at, attempt.org_id LIMIT 1
        ) AS owner
        WHERE credit.kind = 'credit' AND owner.org_id <> credit.org_id
    )
    SELECT org_id, id, format('credit %s of %s cents, for %s, is the money of org %s, and %s cents of it are here:'
        ' metering adjust %s --cents %s --reason ... --key %s',
        id, amount_cents, source_key, owner, cents, org_id, -cents, source_key)
    FROM misplaced
    CROSS JOIN LATERAL (
        SELECT sum(booked.amount_cents) AS cents FROM transactions AS booked
        WHERE booked.org_id = misplaced.org_id AND booked.kind <> 'debit'
            AND misplaced.source_key IN (booked.source_key, booked.metadata ->> 'payment_intent_id')
    ) AS left_here
    WHERE cents <> 0
    """,
)

# An attempt that edited metadata had brought to another org, in a version that followed them, stays: its credit is found above.
_CUSTOMER_IN_ORG: Final = Invariant(
    "customer_in_org",
    "Every customer that an org or one of its attempts has is noted as that org's, and no other's.",
    """
    SELECT used.org_id, NULL, format('%s has customer %s, who is %s', used.what, used.customer_id,
        coalesce('of org ' || owner.org_id, 'not known'))
    FROM (
        SELECT org_id, stripe_customer_id AS customer_id, 'the account' AS what FROM accounts
        WHERE stripe_customer_id IS NOT NULL
        UNION ALL
        SELECT org_id, customer_id, 'attempt ' || id FROM payment_attempts WHERE NOT recovered
    ) AS used
    LEFT JOIN stripe_customers AS owner USING (customer_id)
    WHERE owner.org_id IS DISTINCT FROM used.org_id
    """,
)

_ONE_OPEN_RELOAD: Final = Invariant(
    "one_open_reload",
    "No org has two auto-reloads open at once.",
    """
    SELECT org_id, NULL, format('%s auto-reloads are open', count(*))
    FROM payment_attempts
    WHERE kind = 'auto_reload' AND status = 'open'
    GROUP BY org_id
    HAVING count(*) > 1
    """,
)

# The month is that of Stripe's charge. Where that isn't known, none was made, or by a version that went by our own time.
# Those that ended unsent could take nothing. Of two made in the same millisecond the later one is that which saw more held.
# Of two of the same moment, with as much held before each, the one that failed came first: else the other would have held more.
# Earlier ones that ended without success before this one was made held nothing any more. Recovered ones were not made by the
# rule here: the rule that made them saw rows which this database has lost. Nor did it see them before they were recovered.
_MONTH_WITHIN_LIMIT: Final = Invariant(
    "month_within_limit",
    "An auto-reload, with all that earlier ones held of Stripe's UTC month of it, fits into the limit in force when it was made.",
    """
    SELECT attempt.org_id, NULL, format('attempt %s of %s cents was made with %s cents held in its month, and a limit of %s',
        attempt.id, attempt.amount_cents, coalesce(sum(earlier.amount_cents), 0), attempt.monthly_limit_cents)
    FROM payment_attempts AS attempt
    LEFT JOIN payment_attempts AS earlier ON earlier.org_id = attempt.org_id AND earlier.kind = 'auto_reload'
        AND earlier.id <> attempt.id
        AND earlier.created_at >= attempt.created_at - interval '2 months' AND earlier.created_at <= attempt.created_at
        AND date_trunc('month', coalesce(earlier.intent_created_at, earlier.created_at), 'UTC')
            = date_trunc('month', coalesce(attempt.intent_created_at, attempt.created_at), 'UTC')
        AND (earlier.status IN ('open', 'succeeded') OR earlier.finished_at > attempt.created_at)
        AND (NOT earlier.recovered OR earlier.finished_at <= attempt.created_at)
        AND ((earlier.created_at, earlier.month_committed_cents) < (attempt.created_at, attempt.month_committed_cents)
            OR ((earlier.created_at, earlier.month_committed_cents) = (attempt.created_at, attempt.month_committed_cents)
                AND earlier.id < attempt.id
                AND earlier.status IN ('open', 'succeeded') AND attempt.status IN ('open', 'succeeded')))
    WHERE attempt.kind = 'auto_reload' AND attempt.monthly_limit_cents IS NOT NULL AND NOT attempt.recovered
        AND (attempt.first_sent_at IS NOT NULL OR attempt.status = 'open')
    GROUP BY attempt.org_id, attempt.id, attempt.amount_cents, attempt.monthly_limit_cents
    HAVING coalesce(sum(earlier.amount_cents), 0) + attempt.amount_cents > attempt.monthly_limit_cents
    """,
)

_ATTEMPT_WATCHED: Final = Invariant(
    "attempt_watched",
    "No attempt is open whose time to be looked at is over for more than 15 minutes: the reconciler watches them all.",
    """
    SELECT org_id, NULL, format('attempt %s of %s is open, and should have been looked at since %s', id, created_at, look_at)
    FROM payment_attempts
    WHERE status = 'open' AND look_at
        < (SELECT metering_now()) - interval '15 minutes'
    """,
)

_STRIPE_EVENT_HANDLED: Final = Invariant(
    "stripe_event_handled",
    "No event of Stripe's has been set aside for more than 15 minutes: what it tells of is not booked.",
    """
    SELECT NULL::bigint, NULL, format('event %s, %s, could not be handled since %s, %s times: %s. It is tried again at %s',
        id, type, set_aside_at, tries, error, retry_at)
    FROM set_aside_events
    WHERE set_aside_at
        < (SELECT metering_now()) - interval '15 minutes'
    """,
)

# "Not there" counts 25 h after it was last sent, a top-up is cancelled 24 h after it was made; the look may be an hour late.
_ATTEMPT_ENDS: Final = Invariant(
    "attempt_ends",
    "No attempt is open 27 hours after it was made and last sent (docs/how-to/stripe.md#look-at-charges).",
    """
    SELECT org_id, NULL, format('attempt %s of %s is still open, last sent %s', id, created_at,
        coalesce(last_sent_at::text, 'never'))
    FROM payment_attempts
    WHERE status = 'open' AND greatest(created_at, last_sent_at) < (SELECT metering_now()) - interval '27 hours'
    """,
)

PAYMENT_INVARIANTS: Final = (
    *(_ATTEMPT_CREDITED, _CREDIT_HAS_ATTEMPT, _REFUND_HAS_CREDIT, _PAYMENT_IN_CUSTOMERS_ORG),
    _CUSTOMER_IN_ORG,
    *(_ONE_OPEN_RELOAD, _MONTH_WITHIN_LIMIT, _ATTEMPT_WATCHED, _ATTEMPT_ENDS, _STRIPE_EVENT_HANDLED),
)

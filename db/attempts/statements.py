"""The hot statements about reloads and their signals: those asked with debits, and by every round of the reconcilers.

Each says on which path it is, what it locks, and the index that it lives by.
"""

from typing import Final

from sqlalchemy import text

from metering.rules.reloads import CLOCK_MARGIN, PACE_RELOADS

# The reload rule (reload_rule.py).

# A charge is of the month of Stripe's `created`. While that isn't known it may come to be of any from that on in which it was
# first sent. It may be sent for a month after it was made at the longest, or it would have been made anew.
COUNTS_IN_MONTH: Final = """
    kind = 'auto_reload' AND status IN ('open', 'succeeded') AND created_at >= month.starts_at - interval '2 months'
    AND CASE status
        WHEN 'open' THEN date_trunc('month', coalesce(first_sent_at, created_at), 'UTC') <= month.starts_at
        ELSE date_trunc('month', coalesce(intent_created_at, first_sent_at, created_at), 'UTC') = month.starts_at
    END
"""
"""Which of an org's `payment_attempts` hold their part of the month that begins at `month.starts_at`."""

# Where a month turns, Stripe's clock may show the other one: the month before, while ours has just gone past its end, or the next
# one, of which its last charge is already. Then that counts of which more is held.
_SO_FAR: Final = f"""
    LEFT JOIN LATERAL (
        SELECT created_at FROM payment_attempts
        WHERE payment_attempts.org_id = asked.org_id AND kind = 'auto_reload'
        ORDER BY created_at DESC LIMIT 1
    ) AS newest ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(first_sent_at) AS first_sends, max(intent_created_at) AS charged_at FROM (
            SELECT first_sent_at, intent_created_at FROM payment_attempts
            WHERE payment_attempts.org_id = asked.org_id AND kind = 'auto_reload' AND first_sent_at IS NOT NULL
                AND id IS DISTINCT FROM asked.but
            ORDER BY created_at DESC LIMIT {PACE_RELOADS}
        ) AS sent
    ) AS latest ON true
    LEFT JOIN LATERAL (
        SELECT coalesce(max(held_cents), 0)::bigint AS committed_cents FROM (
            SELECT date_trunc(
                'month', greatest(asked.at, newest.created_at) - interval '{CLOCK_MARGIN.total_seconds()} seconds', 'UTC'
            )
            UNION SELECT date_trunc('month', greatest(asked.at, newest.created_at, latest.charged_at), 'UTC')
        ) AS month (starts_at), LATERAL (
            SELECT sum(amount_cents) AS held_cents FROM payment_attempts
            WHERE payment_attempts.org_id = asked.org_id AND id IS DISTINCT FROM asked.but AND {COUNTS_IN_MONTH}
        ) AS held
    ) AS month ON true
"""  # noqa: S608 - of our own text alone
"""Joins to `asked (org_id, at, but)`, of all attempts but one: `newest.created_at`, `first_sends`, `committed_cents`."""

# In the transaction of each debit, settlement, setting or card that may change the rule's answer, for orgs that it has locked.
# Locks nothing more. By org: attempts by payment_attempts_org_id_kind_created_at_idx and the partial index of open reloads.
#
# The time is that of posting, or of the org's newest auto-reload where that is later: a clock that lags must not count into a
# month that is over.
RELOAD_FACTS: Final = text(f"""
    SELECT accounts.org_id, balance_cents, auto_reload_enabled,
        coalesce(auto_reload_minimum_cents, 0) AS minimum_cents, coalesce(auto_reload_amount_cents, 0) AS amount_cents,
        auto_reload_monthly_limit_cents, stripe_customer_id, default_payment_method_id,
        greatest(asked.at, newest.created_at) AS now, committed_cents, first_sends,
        EXISTS (
            SELECT FROM payment_attempts
            WHERE payment_attempts.org_id = accounts.org_id AND kind = 'auto_reload' AND status = 'open'
        ) AS attempt_open,
        pause_code, pause_lifts_with, paused_at, paused_until, paused_card, skip_reason, ask_at,
        suspended_at IS NOT NULL AS suspended, refused.noted_at AS refused_at, refused.first_increment_cents
    FROM accounts
    JOIN (
        SELECT org_id, at, NULL::uuid FROM unnest(CAST(:org_ids AS bigint[]), CAST(:ats AS timestamptz[])) AS asked (org_id, at)
    ) AS asked (org_id, at, but) USING (org_id)
    LEFT JOIN reload_states USING (org_id)
    LEFT JOIN refused_holds AS refused ON refused.org_id = accounts.org_id AND refused.attempt_id IS NULL
    {_SO_FAR}
    ORDER BY accounts.org_id
""")  # noqa: S608 - of our own text alone

# Every round of the payment reconciler: orgs whose time has come, from one on. Along reload_states_ask_at_idx, so that whoever
# waits costs nothing. Locks nothing, so it may be out of date: whoever acts on it locks the org and asks again.
DUE_RELOADS: Final = text("""
    SELECT ask_at, org_id FROM reload_states
    WHERE ask_at <= :now AND (ask_at, org_id) > (:after_at, :after) ORDER BY ask_at, org_id LIMIT :limit
""")

# Every round of the payment reconciler: the next orgs that have reloads enabled, by accounts_auto_reload_idx. Locks nothing, as
# above. What bounds the work is the number of rows that are looked at, not of those that are found.
RELOADS_ENABLED: Final = text("""
    SELECT org_id, balance_cents < greatest(auto_reload_minimum_cents, 1) OR skip_reason IS NOT NULL AS worth_asking
    FROM (
        SELECT org_id, balance_cents, auto_reload_minimum_cents FROM accounts
        WHERE auto_reload_enabled AND org_id > :after ORDER BY org_id LIMIT :limit
    ) AS enabled LEFT JOIN reload_states USING (org_id)
    ORDER BY org_id
""")

# Before the reconciler asks the rule: locks those of the orgs that are free. Sorted, as everywhere; by the primary key.
LOCK_FREE_ORGS: Final = text("""
    SELECT org_id FROM accounts
    WHERE org_id = ANY(CAST(:org_ids AS bigint[])) ORDER BY org_id FOR NO KEY UPDATE SKIP LOCKED
""")

# Before each charge, under the org's lock. Locks nothing; by payment_attempts_org_id_kind_created_at_idx.
RELOADS_SO_FAR: Final = text(f"""
    SELECT committed_cents, first_sends
    FROM (SELECT CAST(:org_id AS bigint), CAST(:at AS timestamptz), CAST(:but AS uuid)) AS asked (org_id, at, but) {_SO_FAR}
""")  # noqa: S608 - of our own text alone

# Refused calls (refused_holds.py).

# Some times a second where calls are refused, by the API and the jobs. Locks the notes, sorted, as whoever asks the rule does; by
# their primary key. Locks no org: to be noted must not wait for calls that are being billed.
NOTE_REFUSED: Final = text("""
    INSERT INTO refused_holds AS held (org_id, noted_at, first_increment_cents)
    SELECT org_id, (SELECT metering_now()), cents
    FROM unnest(CAST(:org_ids AS bigint[]), CAST(:cents AS bigint[])) AS refused (org_id, cents)
    JOIN accounts USING (org_id) ORDER BY org_id
    ON CONFLICT (org_id) DO UPDATE
    SET noted_at = excluded.noted_at, first_increment_cents = excluded.first_increment_cents, asked_at = NULL, attempt_id = NULL
    WHERE held.noted_at <= excluded.noted_at - interval '1 minute'
        OR held.noted_at > excluded.noted_at -- by a clock that was wrong
""")

# Every round of the jobs. Locks nothing; by refused_holds_unasked_idx, which holds what was noted since the last one.
UNASKED_REFUSALS: Final = text("""
    SELECT org_id FROM refused_holds WHERE asked_at IS NULL AND org_id > :after ORDER BY org_id LIMIT :limit
""")

# The outbox of signals (outbox.py). All by the primary key of pending_signals, which is empty but for what was just written.

# After each commit that wrote some. Locks nothing.
SIGNALS_BY_KEY: Final = text("""
    SELECT org_id, id, body
    FROM unnest(CAST(:org_ids AS bigint[]), CAST(:ids AS bigint[])) AS wanted (org_id, id)
    JOIN pending_signals USING (org_id, id) ORDER BY id
""")

# Every round of the payment reconciler. Locks nothing; walks over the table, which is nearly empty.
SIGNALS_LEFT: Final = text("""
    SELECT org_id, id, body FROM pending_signals
    WHERE id > :after AND (created_at < (SELECT metering_now()) - CAST(:age AS interval)
        OR created_at > (SELECT metering_now()) + interval '1 minute') -- by a clock that was wrong
    ORDER BY id LIMIT :limit
""")

# After each was said, sorted by (org_id, id), so that two who said the same ones can't wait for each other.
DELETE_SIGNAL: Final = text("DELETE FROM pending_signals WHERE org_id = :org_id AND id = :id")

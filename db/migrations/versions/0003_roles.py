"""A database role for each role of the product, each with the rights that it needs."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Like metering_app, they belong to the whole cluster: they may be there, or be made by two at once. An owner who may not make
# roles finds them made by deploy/postgres/roles.sql. That the owner inherits them lets `end_blockers` end their sessions.
ROLES = """
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['metering_meter', 'metering_api', 'metering_jobs'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
                EXECUTE format('CREATE ROLE %I LOGIN', wanted);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
    FOREACH wanted IN ARRAY ARRAY['metering_app', 'metering_meter', 'metering_api', 'metering_jobs'] LOOP
        BEGIN
            IF NOT pg_has_role(current_user, wanted, 'USAGE') THEN
                EXECUTE format('GRANT %I TO CURRENT_USER', wanted) -- 15 has no word for the rest
                    || CASE WHEN current_setting('server_version_num')::integer >= 160000
                        THEN ' WITH INHERIT TRUE, SET FALSE' ELSE '' END;
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation OR internal_error THEN -- another migration has done so meanwhile
            NULL;
        END;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'the roles of the product are not there, or not this user''s: %', SQLERRM
        USING ERRCODE = 'insufficient_privilege', HINT = 'Run deploy/postgres/roles.sql as superuser, then migrate again.';
END $$;
"""

# A stopped process holds its locks on. Its session belongs to another role than the meter's that waits for it, and only a member
# of that role may end it: so this runs with the owner's rights, and sees to it by itself that it does nothing else. Not younger
# than a second: no transaction of ours takes as long, and a meter gone mad must not end others' at will.
END_BLOCKERS = """
CREATE FUNCTION end_blockers(waiting_pid integer, age_s double precision) RETURNS SETOF integer
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT pid FROM (
        SELECT blocker.pid, pg_terminate_backend(blocker.pid) AS ended
        FROM unnest(pg_blocking_pids(waiting_pid)) AS blocking (pid)
        JOIN pg_stat_activity AS blocker USING (pid)
        WHERE blocker.usename IN ('metering_app', 'metering_meter', 'metering_api', 'metering_jobs')
            AND blocker.datname = current_database()
            AND blocker.xact_start < clock_timestamp() - make_interval(secs => greatest(age_s, 1))
            AND EXISTS (SELECT FROM pg_stat_activity AS own WHERE own.pid = waiting_pid AND own.usename = session_user)
    ) AS blocker
    WHERE ended
$$;
REVOKE ALL ON FUNCTION end_blockers FROM PUBLIC;
GRANT EXECUTE ON FUNCTION end_blockers TO metering_app, metering_meter;
"""

# The meter writes debits alone: without `source_key` the check of kinds lets no other pass. Of a reload that is due it makes the
# attempt, and never touches one again.
METER = """
GRANT USAGE ON SCHEMA public TO metering_meter;
GRANT SELECT ON alembic_version, accounts, transactions, tier_prices, payment_attempts, reload_states, pending_signals
    TO metering_meter;
GRANT UPDATE (balance_cents, version, transaction_count, last_posted_at) ON accounts TO metering_meter;
GRANT INSERT (
    org_id, kind, amount_cents, balance_after_cents, created_at, description,
    call_id, stream_id, tier, direction, duration_us, ended_at, phone_number_id, phone_number_value, metadata,
    billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd
) ON transactions TO metering_meter;
GRANT SELECT (stream_id, raw_sha256), INSERT (stream_id, reason, detail, raw, raw_length_bytes, raw_sha256, received_at)
    ON rejected_events TO metering_meter;
GRANT INSERT (
    org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, monthly_limit_cents, month_committed_cents,
    first_sent_at, last_sent_at, in_hand_until, look_at
) ON payment_attempts TO metering_meter;
GRANT INSERT (org_id, skip_reason, skip_since), UPDATE (skip_reason, skip_since) ON reload_states TO metering_meter;
GRANT INSERT (org_id, type, body, created_at), DELETE ON pending_signals TO metering_meter;
"""

# What the API and the jobs have in common: money that comes in and goes back. Without `call_id` they can't write a debit.
PAYMENTS = """
GRANT USAGE ON SCHEMA public TO metering_api, metering_jobs;
GRANT SELECT ON alembic_version, accounts, transactions, tier_prices, payment_methods, payment_attempts, stripe_events,
    reload_states, pending_signals TO metering_api, metering_jobs;
GRANT UPDATE (
    balance_cents, version, transaction_count, last_posted_at,
    stripe_customer_id, default_payment_method_id, default_card_identity
) ON accounts TO metering_api, metering_jobs;
GRANT INSERT (
    org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key, metadata
) ON transactions TO metering_api, metering_jobs;
GRANT INSERT, UPDATE (ready_at, detached_at) ON payment_methods TO metering_api, metering_jobs;
GRANT INSERT, UPDATE (
    status, payment_intent_id, intent_status, failure_code, failure_message, first_sent_at, last_sent_at, tries, look_at,
    looked_at, finished_at, in_hand_until, answered_at
) ON payment_attempts TO metering_api, metering_jobs;
GRANT INSERT ON stripe_events TO metering_api, metering_jobs;
GRANT INSERT, UPDATE (
    declines, pause_code, pause_lifts_with, paused_at, paused_until, paused_card, skip_reason, skip_since
) ON reload_states TO metering_api, metering_jobs;
GRANT INSERT (org_id, type, body, created_at), DELETE ON pending_signals TO metering_api, metering_jobs;
"""

API = """
GRANT SELECT ON api_keys, idempotency_keys TO metering_api;
GRANT UPDATE (
    auto_reload_enabled, auto_reload_minimum_cents, auto_reload_amount_cents, auto_reload_monthly_limit_cents
) ON accounts TO metering_api;
GRANT INSERT, UPDATE (attempt_id, answer) ON idempotency_keys TO metering_api;
"""

JOBS = """
GRANT SELECT ON tiers, rejected_events, stripe_cursors TO metering_jobs;
GRANT INSERT, UPDATE (position, looked_at) ON stripe_cursors TO metering_jobs;
"""


def upgrade() -> None:
    """Make the roles, and grant each what it needs; metering_app keeps what it has, and may do what any of them may."""
    for script in (ROLES, END_BLOCKERS, METER, PAYMENTS, API, JOBS):
        op.execute(script)

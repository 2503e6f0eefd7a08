"""Payments: API keys, cards and reload settings, attempts, what Stripe said, and signals that are still to be said."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = """
ALTER TABLE accounts
    ADD COLUMN auto_reload_enabled boolean DEFAULT false NOT NULL,
    ADD COLUMN auto_reload_minimum_cents bigint,
    ADD COLUMN auto_reload_amount_cents bigint,
    ADD COLUMN auto_reload_monthly_limit_cents bigint,
    ADD COLUMN stripe_customer_id text,
    ADD COLUMN default_payment_method_id text,
    ADD COLUMN default_card_identity text,
    ADD CONSTRAINT accounts_auto_reload_check CHECK (
        auto_reload_minimum_cents >= 0 AND auto_reload_amount_cents > 0 AND auto_reload_monthly_limit_cents >= 0
        AND (NOT auto_reload_enabled OR (auto_reload_minimum_cents IS NOT NULL AND auto_reload_amount_cents IS NOT NULL))
    );
CREATE INDEX accounts_stripe_customer_id_idx ON accounts (stripe_customer_id) WHERE stripe_customer_id IS NOT NULL;
CREATE INDEX accounts_auto_reload_idx ON accounts (org_id) WHERE auto_reload_enabled;

CREATE TABLE api_keys (
    id bigint GENERATED ALWAYS AS IDENTITY,
    org_id bigint NOT NULL,
    key_sha256 bytea NOT NULL,
    hint text NOT NULL,
    created_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_key_sha256_key UNIQUE (key_sha256)
);
CREATE INDEX api_keys_org_id_idx ON api_keys (org_id);

CREATE TABLE payment_methods (
    org_id bigint NOT NULL,
    payment_method_id text NOT NULL,
    ready_at timestamptz NOT NULL,
    detached_at timestamptz,
    CONSTRAINT payment_methods_pkey PRIMARY KEY (org_id, payment_method_id)
);
CREATE INDEX payment_methods_payment_method_id_idx ON payment_methods (payment_method_id);

CREATE TABLE payment_attempts (
    org_id bigint NOT NULL,
    id uuid NOT NULL,
    kind text NOT NULL,
    amount_cents bigint NOT NULL,
    customer_id text NOT NULL,
    payment_method_id text NOT NULL,
    created_at timestamptz NOT NULL,
    monthly_limit_cents bigint,
    month_committed_cents bigint DEFAULT 0 NOT NULL,
    recovered boolean DEFAULT false NOT NULL,
    status text DEFAULT 'open' NOT NULL,
    payment_intent_id text,
    intent_status text,
    failure_code text,
    failure_message text,
    first_sent_at timestamptz,
    last_sent_at timestamptz,
    tries bigint DEFAULT 0 NOT NULL,
    look_at timestamptz NOT NULL,
    looked_at timestamptz,
    finished_at timestamptz,
    in_hand_until timestamptz,
    answered_at timestamptz,
    CONSTRAINT payment_attempts_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT payment_attempts_kind_check CHECK (kind IN ('top_up', 'auto_reload')),
    CONSTRAINT payment_attempts_status_check CHECK (status IN ('open', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT payment_attempts_finished_check CHECK ((status = 'open') = (finished_at IS NULL)),
    CONSTRAINT payment_attempts_amount_check CHECK (amount_cents > 0)
);
CREATE UNIQUE INDEX payment_attempts_open_reload_key ON payment_attempts (org_id)
    WHERE kind = 'auto_reload' AND status = 'open';
CREATE INDEX payment_attempts_org_id_kind_created_at_idx ON payment_attempts (org_id, kind, created_at);
CREATE INDEX payment_attempts_payment_intent_id_idx ON payment_attempts (payment_intent_id)
    WHERE payment_intent_id IS NOT NULL;
CREATE INDEX payment_attempts_look_at_idx ON payment_attempts (look_at) WHERE status = 'open';

CREATE TABLE idempotency_keys (
    org_id bigint NOT NULL,
    key text NOT NULL,
    request_sha256 bytea NOT NULL,
    attempt_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    answer text,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (org_id, key)
);

CREATE TABLE stripe_events (
    id text NOT NULL,
    type text NOT NULL,
    created_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    outcome text NOT NULL,
    CONSTRAINT stripe_events_pkey PRIMARY KEY (id)
);

CREATE TABLE stripe_cursors (
    name text NOT NULL,
    position timestamptz NOT NULL,
    looked_at timestamptz NOT NULL,
    CONSTRAINT stripe_cursors_pkey PRIMARY KEY (name)
);

CREATE TABLE reload_states (
    org_id bigint NOT NULL,
    declines bigint DEFAULT 0 NOT NULL,
    pause_code text,
    pause_lifts_with text,
    paused_at timestamptz,
    paused_until timestamptz,
    paused_card text,
    skip_reason text,
    skip_since timestamptz,
    CONSTRAINT reload_states_pkey PRIMARY KEY (org_id),
    CONSTRAINT reload_states_pause_check CHECK (
        (pause_code IS NULL) = (pause_lifts_with IS NULL) AND (pause_code IS NULL) = (paused_at IS NULL)
        AND coalesce(pause_lifts_with IN ('time', 'change', 'card'), true)
        AND (coalesce(pause_lifts_with, '') = 'time') = (paused_until IS NOT NULL)
    )
);

CREATE TABLE pending_signals (
    org_id bigint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    type text NOT NULL,
    body text NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT pending_signals_pkey PRIMARY KEY (org_id, id)
);

CREATE INDEX transactions_money_idx ON transactions (org_id, kind, id) WHERE kind <> 'debit';
"""

# What was sent to Stripe must never change or vanish: a repeat of the same key with other content decides nothing.
KEPT = """
CREATE TRIGGER payment_attempts_kept BEFORE DELETE OR TRUNCATE ON payment_attempts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER stripe_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON stripe_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER idempotency_keys_kept BEFORE DELETE OR TRUNCATE ON idempotency_keys
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER api_keys_kept BEFORE DELETE OR TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

# Where a list starts and ends by time: id order is time order, so a time is found by halving the ids, on the primary key,
# instead of paying for an index by time with every debit.
FIRST_SINCE = """
CREATE FUNCTION first_transaction_since(wanted_org bigint, since timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    low bigint := (SELECT min(id) FROM transactions WHERE org_id = wanted_org);
    high bigint := (SELECT max(id) + 1 FROM transactions WHERE org_id = wanted_org);
    middle bigint;
    found_id bigint;
    found_at timestamptz;
BEGIN
    WHILE low < high LOOP
        middle := low + (high - low) / 2;
        SELECT id, created_at INTO found_id, found_at FROM transactions
            WHERE org_id = wanted_org AND id >= middle ORDER BY org_id, id LIMIT 1;
        IF found_at >= since OR found_id IS NULL THEN
            high := middle;
        ELSE
            low := found_id + 1;
        END IF;
    END LOOP;
    RETURN low;
END $$;
"""

# By column: what is sent to Stripe is fixed once it is written.
GRANTS = """
GRANT SELECT ON api_keys, payment_methods, payment_attempts, idempotency_keys, stripe_events, stripe_cursors, reload_states,
    pending_signals TO metering_app;
GRANT UPDATE (
    auto_reload_enabled, auto_reload_minimum_cents, auto_reload_amount_cents, auto_reload_monthly_limit_cents,
    stripe_customer_id, default_payment_method_id, default_card_identity
) ON accounts TO metering_app;
GRANT INSERT (org_id, key_sha256, hint, created_at), UPDATE (revoked_at) ON api_keys TO metering_app;
GRANT INSERT, UPDATE (ready_at, detached_at) ON payment_methods TO metering_app;
GRANT INSERT, UPDATE (
    status, payment_intent_id, intent_status, failure_code, failure_message, first_sent_at, last_sent_at, tries, look_at,
    looked_at, finished_at, in_hand_until, answered_at
) ON payment_attempts TO metering_app;
GRANT INSERT, UPDATE (attempt_id, answer) ON idempotency_keys TO metering_app;
GRANT INSERT ON stripe_events TO metering_app;
GRANT INSERT, UPDATE (position, looked_at) ON stripe_cursors TO metering_app;
GRANT INSERT, UPDATE (
    declines, pause_code, pause_lifts_with, paused_at, paused_until, paused_card, skip_reason, skip_since
) ON reload_states TO metering_app;
GRANT INSERT (org_id, type, body, created_at), DELETE ON pending_signals TO metering_app;
"""


def upgrade() -> None:
    """Make the tables, close them against change, and grant the application's role what it needs."""
    for script in (TABLES, KEPT, FIRST_SINCE, GRANTS):
        op.execute(script)

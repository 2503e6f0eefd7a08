"""Re-pricings: what calls of a past time would have cost on other terms, and what was adjusted for it."""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE repricings (
    id bigint GENERATED ALWAYS AS IDENTITY,
    key text NOT NULL,
    tier text NOT NULL,
    from_at timestamptz NOT NULL,
    until_at timestamptz NOT NULL,
    org_id bigint,
    rate_microusd_per_minute bigint NOT NULL,
    steps bigint[],
    increment_first_s bigint,
    increment_next_s bigint,
    minimum_s bigint,
    connect_fee_microusd bigint,
    reason text NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    finished_at timestamptz,
    CONSTRAINT repricings_pkey PRIMARY KEY (id),
    CONSTRAINT repricings_key_key UNIQUE (key),
    CONSTRAINT repricings_tier_fkey FOREIGN KEY (tier) REFERENCES tiers (name),
    CONSTRAINT repricings_time_check CHECK (from_at < until_at)
);

CREATE TABLE repriced_orgs (
    repricing_id bigint NOT NULL,
    org_id bigint NOT NULL,
    cutoff_transaction_id bigint NOT NULL,
    calls bigint NOT NULL,
    billable_seconds bigint NOT NULL,
    billed_cents bigint NOT NULL,
    repriced_cents bigint NOT NULL,
    transaction_id bigint,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT repriced_orgs_pkey PRIMARY KEY (repricing_id, org_id),
    CONSTRAINT repriced_orgs_repricing_id_fkey FOREIGN KEY (repricing_id) REFERENCES repricings (id),
    CONSTRAINT repriced_orgs_adjusted_check CHECK ((billed_cents = repriced_cents) = (transaction_id IS NULL))
);
CREATE INDEX repriced_orgs_org_id_idx ON repriced_orgs (org_id);

CREATE TRIGGER repricings_kept BEFORE DELETE OR TRUNCATE ON repricings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER repriced_orgs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON repriced_orgs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

# Commands write them; the jobs' audit reads them. Nobody writes when: it is Postgres's own clock's, but for the end.
GRANTS = """
GRANT SELECT ON repricings, repriced_orgs TO metering_app, metering_jobs;
GRANT INSERT (
    key, tier, from_at, until_at, org_id, rate_microusd_per_minute, steps, increment_first_s, increment_next_s, minimum_s,
    connect_fee_microusd, reason
), UPDATE (finished_at) ON repricings TO metering_app;
GRANT INSERT (
    repricing_id, org_id, cutoff_transaction_id, calls, billable_seconds, billed_cents, repriced_cents, transaction_id
) ON repriced_orgs TO metering_app;
"""


def upgrade() -> None:
    """Make the tables. The version before neither knows nor needs them."""
    op.execute(TABLES)
    op.execute(GRANTS)

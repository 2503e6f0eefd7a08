"""In which month a reload counts, and what has lifted a pause: by settings, seldom, and by hand."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# No default that has to be computed, so no row is written. Rows of the version before, also those that it makes beside this one,
# count in the month in which they were first sent.
COLUMNS = """
SET LOCAL lock_timeout = '5s';
ALTER TABLE payment_attempts ADD COLUMN intent_created_at timestamptz;
ALTER TABLE reload_states
    ADD COLUMN lifts timestamptz[] DEFAULT '{}' NOT NULL,
    ADD COLUMN declined_cards text[] DEFAULT '{}' NOT NULL;
"""

RESUMPTIONS = """
CREATE TABLE reload_resumptions (
    org_id bigint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    code text NOT NULL,
    resumed_at timestamptz NOT NULL,
    resumed_by text NOT NULL,
    reason text NOT NULL,
    CONSTRAINT reload_resumptions_pkey PRIMARY KEY (org_id, id)
);
CREATE TRIGGER reload_resumptions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reload_resumptions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

# A refund paused for good, and nobody was told: such pauses end a day after they began, which most have long done.
REFUNDS = """
UPDATE reload_states
SET pause_lifts_with = 'time', paused_until = paused_at + interval '24 hours', ask_at = timestamptz '1970-01-01 00:00:00+00'
WHERE pause_code = 'refunded' AND pause_lifts_with = 'change';
"""

# The meter never touches an attempt or a pause again. A pause is lifted by hand only by a command.
GRANTS = """
GRANT UPDATE (intent_created_at) ON payment_attempts TO metering_api, metering_jobs, metering_app;
GRANT UPDATE (lifts, declined_cards) ON reload_states TO metering_api, metering_jobs, metering_app;
GRANT SELECT, INSERT (org_id, code, resumed_at, resumed_by, reason) ON reload_resumptions TO metering_app;
"""


def upgrade() -> None:
    """Add columns and table, let refunds' pauses end, and let those write who settle, change settings and resume."""
    for script in (COLUMNS, RESUMPTIONS, REFUNDS, GRANTS):
        op.execute(script)

"""Prices may have steps, by what an org has used of the tier in the month; that is counted, and stored with each debit."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Without defaults, so no row is written. `steps` is flat: end in seconds, rate, end, rate, and the last rate.
COLUMNS = """
SET LOCAL lock_timeout = '5s';
ALTER TABLE prices
    ADD COLUMN steps bigint[],
    ADD CONSTRAINT prices_steps_check CHECK (
        cardinality(steps) >= 3 AND cardinality(steps) % 2 = 1 AND array_ndims(steps) = 1
        AND steps[cardinality(steps)] = rate_microusd_per_minute
    );
ALTER TABLE transactions ADD COLUMN steps bigint[], ADD COLUMN used_before_s bigint;
CREATE TRIGGER prices_steps_kept BEFORE UPDATE ON prices
    FOR EACH ROW WHEN (NEW.steps IS DISTINCT FROM OLD.steps) EXECUTE FUNCTION refuse_price_change();
"""

# Written in the transaction of the debits, under the org's lock. Half of each page is left free, so that the next month's updates
# find room beside the row, and leave the index alone.
TABLE = """
CREATE TABLE monthly_usage (
    org_id bigint NOT NULL,
    tier text NOT NULL,
    month date NOT NULL,
    billable_seconds bigint NOT NULL,
    CONSTRAINT monthly_usage_pkey PRIMARY KEY (org_id, tier, month)
) WITH (fillfactor = 50);
"""

VERSION_BEFORE = """
CREATE OR REPLACE FUNCTION prices_known_to_version_before() RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF EXISTS (SELECT FROM prices WHERE org_id IS NOT NULL OR cancelled_at IS NOT NULL OR steps IS NOT NULL) THEN
        RAISE EXCEPTION 'there are prices that this program''s version doesn''t know: stop it, and start the new one'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN true;
END $$;
"""

GRANTS = """
GRANT INSERT (steps) ON prices TO metering_app;
GRANT INSERT (steps, used_before_s) ON transactions TO metering_app, metering_meter;
GRANT SELECT ON monthly_usage TO metering_app, metering_meter, metering_api, metering_jobs;
GRANT INSERT, UPDATE (billable_seconds) ON monthly_usage TO metering_app, metering_meter;
"""


def upgrade() -> None:
    """Add the columns and the table. The version before is refused once there is a price with steps."""
    for script in (COLUMNS, TABLE, VERSION_BEFORE, GRANTS):
        op.execute(script)

"""What each org used of each tier, day by day, derived from the ledger by the jobs."""

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

# Half of each page stays free: today's rows of busy orgs are written every few seconds. Empty: the jobs fill them page by page,
# the history too, each page in a transaction of its own, and the version before takes no notice.
TABLES = """
CREATE TABLE daily_usage (
    org_id bigint NOT NULL,
    tier text NOT NULL,
    day date NOT NULL,
    calls bigint NOT NULL,
    billable_seconds bigint NOT NULL,
    billed_cents bigint NOT NULL,
    CONSTRAINT daily_usage_pkey PRIMARY KEY (org_id, tier, day)
) WITH (fillfactor = 50);

CREATE TABLE daily_usage_cursors (
    org_id bigint NOT NULL,
    transaction_id bigint NOT NULL,
    transaction_count bigint NOT NULL,
    CONSTRAINT daily_usage_cursors_pkey PRIMARY KEY (org_id)
) WITH (fillfactor = 50);
"""

GRANTS = """
GRANT SELECT, INSERT, UPDATE ON daily_usage, daily_usage_cursors TO metering_app, metering_jobs;
"""


def upgrade() -> None:
    """Make the tables, and let the jobs write them."""
    op.execute(TABLES)
    op.execute(GRANTS)

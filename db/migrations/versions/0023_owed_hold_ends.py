"""Calls whose holds are still to be ended."""

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

# No foreign key: it would lock the org's row. The version before neither knows nor needs it.
TABLE = """
CREATE TABLE owed_hold_ends (
    org_id bigint NOT NULL,
    call_id bigint NOT NULL,
    noted_at timestamptz NOT NULL,
    CONSTRAINT owed_hold_ends_pkey PRIMARY KEY (org_id, call_id)
);
"""

# Meters keep what they couldn't end, and jobs end it. For ON CONFLICT a meter reads the key.
GRANTS = """
GRANT SELECT, INSERT, DELETE ON owed_hold_ends TO metering_app;
GRANT SELECT (org_id, call_id), INSERT ON owed_hold_ends TO metering_meter;
GRANT SELECT, DELETE ON owed_hold_ends TO metering_jobs;
"""


def upgrade() -> None:
    """Make the table."""
    op.execute(TABLE)
    op.execute(GRANTS)

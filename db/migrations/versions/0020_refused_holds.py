"""That a call was refused for want of money is noted: it may make a reload due."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE refused_holds (
    org_id bigint NOT NULL,
    noted_at timestamptz NOT NULL,
    first_increment_cents bigint NOT NULL,
    asked_at timestamptz,
    attempt_id uuid,
    CONSTRAINT refused_holds_pkey PRIMARY KEY (org_id),
    CONSTRAINT refused_holds_cents_check CHECK (first_increment_cents >= 0)
);
CREATE INDEX refused_holds_unasked_idx ON refused_holds (org_id) WHERE asked_at IS NULL;
"""

# The API and the jobs note; whoever asks the reload rule looks, and writes down which reload came of it.
GRANTS = """
GRANT SELECT, UPDATE (asked_at, attempt_id) ON refused_holds TO metering_app, metering_meter, metering_api, metering_jobs;
GRANT INSERT, UPDATE (noted_at, first_increment_cents) ON refused_holds TO metering_app, metering_api, metering_jobs;
"""


def upgrade() -> None:
    """Make the table. The version before neither knows nor needs it."""
    op.execute(TABLE)
    op.execute(GRANTS)

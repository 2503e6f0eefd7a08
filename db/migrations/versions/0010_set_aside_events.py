"""Events of Stripe's that could not be handled are kept in a table of their own, and hold up no others."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE set_aside_events (
    id text NOT NULL,
    type text NOT NULL,
    created_at timestamptz NOT NULL,
    livemode boolean NOT NULL,
    data json NOT NULL,
    set_aside_at timestamptz NOT NULL,
    tries bigint DEFAULT 1 NOT NULL,
    retry_at timestamptz NOT NULL,
    error text NOT NULL,
    CONSTRAINT set_aside_events_pkey PRIMARY KEY (id)
);
CREATE INDEX set_aside_events_retry_at_idx ON set_aside_events (retry_at);
"""

GRANTS = """
GRANT SELECT ON set_aside_events TO metering_app, metering_jobs;
GRANT INSERT, DELETE, UPDATE (tries, retry_at, error) ON set_aside_events TO metering_app, metering_jobs;
"""


def upgrade() -> None:
    """Make the table. The version before neither knows nor needs it."""
    op.execute(TABLE)
    op.execute(GRANTS)

"""One clock for all processes: Postgres's own; and when Stripe's event list was last read to its end."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# In a function, so that a test can put another one in its place. Only the owner can, whom no process of the product works as, and
# each process compares it with its own clock, so that it would be noticed. Postgres puts a body like this one into the statement
# itself: it costs nothing.
CLOCK = """
CREATE FUNCTION metering_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT pg_catalog.date_trunc('milliseconds', pg_catalog.clock_timestamp())
$$;
GRANT EXECUTE ON FUNCTION metering_now() TO metering_app, metering_meter, metering_api, metering_jobs;
"""

READING = """
ALTER TABLE stripe_cursors ADD COLUMN read_at timestamptz;
GRANT UPDATE (read_at) ON stripe_cursors TO metering_app, metering_jobs;
"""


def upgrade() -> None:
    """Make the function and the column."""
    for script in (CLOCK, READING):
        op.execute(script)

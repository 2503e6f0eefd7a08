"""When the reload rule is to be asked again for want of anything but time: so that a sweep looks only at what is due."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The default stays. Rows that are there, and those that a program of before inserts meanwhile, are due at once and then have
# their time; no row is written or locked here. Beside running programs this takes the table for as long as the index takes to
# build (a row an org that has ever waited: a fraction of a second for 100,000), or gives up after five seconds.
TIMES = """
SET LOCAL lock_timeout = '5s';
ALTER TABLE reload_states ADD COLUMN ask_at timestamptz DEFAULT timestamptz '1970-01-01 00:00:00+00';
CREATE INDEX reload_states_ask_at_idx ON reload_states (ask_at, org_id) WHERE ask_at IS NOT NULL;
"""

GRANTS = """
GRANT INSERT (ask_at), UPDATE (ask_at) ON reload_states TO metering_meter, metering_api, metering_jobs, metering_app;
"""


def upgrade() -> None:
    """Add the column and its index, and let those write it who write the rest of the row."""
    for script in (TIMES, GRANTS):
        op.execute(script)

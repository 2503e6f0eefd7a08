"""How many of an org's calls may run at once."""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# Without a default, so no row is written. The check reads the accounts once. The version before neither reads nor writes the
# column: where it has made a gate, the jobs of this one bring the limit in.
COLUMN = """
SET LOCAL lock_timeout = '5s';
ALTER TABLE accounts
    ADD COLUMN max_concurrent_calls bigint,
    ADD CONSTRAINT accounts_max_concurrent_calls_check CHECK (max_concurrent_calls > 0);
"""

# Commands alone set it.
GRANTS = """
GRANT UPDATE (max_concurrent_calls) ON accounts TO metering_app;
"""


def upgrade() -> None:
    """Add the column."""
    op.execute(COLUMN)
    op.execute(GRANTS)

"""API keys may have a name and an end, and say when they were last used."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# No defaults, so no row is written.
COLUMNS = """
SET LOCAL lock_timeout = '5s';
ALTER TABLE api_keys
    ADD COLUMN name text,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN last_used_at timestamptz;
CREATE INDEX api_keys_hint_idx ON api_keys (hint);
"""

# The API notes that a key was used, and nothing else of it. The version before knows no end of a key: until it is stopped, it
# takes keys that have ended.
GRANTS = """
GRANT INSERT (name, expires_at), UPDATE (last_used_at) ON api_keys TO metering_app;
GRANT UPDATE (last_used_at) ON api_keys TO metering_api;
"""


def upgrade() -> None:
    """Add the columns, and an index to find a key by its last characters."""
    for script in (COLUMNS, GRANTS):
        op.execute(script)

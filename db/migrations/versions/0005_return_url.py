"""Where a bank sends a top-up's customer back to: part of what an attempt's row fixes."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# NULL in rows from before: they are repeated as they were sent. Nobody may update it, as all that is sent.
COLUMN = "ALTER TABLE payment_attempts ADD COLUMN return_url text"


def upgrade() -> None:
    """Add the column. The program before doesn't know it, and goes on beside."""
    op.execute(COLUMN)

"""An account that is inserted with a customer of Stripe's is held to the table of whose he is, as one that is updated is."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# The program makes accounts without one: this is for whoever restores, merges or mends by hand.
TRIGGER = """
CREATE TRIGGER accounts_keep_inserted_customer AFTER INSERT ON accounts
    FOR EACH ROW WHEN (NEW.stripe_customer_id IS NOT NULL) EXECUTE FUNCTION keep_stripe_customer();
"""


def upgrade() -> None:
    """Make the trigger. Locks accounts for a moment."""
    op.execute(TRIGGER)

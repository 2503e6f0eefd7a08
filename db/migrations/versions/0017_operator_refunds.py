"""Refunds that operators ask for, each once for its key."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE operator_refunds (
    org_id bigint NOT NULL,
    key text NOT NULL,
    payment_intent_id text NOT NULL,
    amount_cents bigint,
    reason text NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    refund_id text,
    refusal text,
    CONSTRAINT operator_refunds_pkey PRIMARY KEY (org_id, key),
    CONSTRAINT operator_refunds_amount_check CHECK (amount_cents > 0),
    CONSTRAINT operator_refunds_end_check CHECK (refund_id IS NULL OR refusal IS NULL)
);
"""

# Commands alone. What was asked for is never changed, and nobody writes when: it is Postgres's own clock's.
GRANTS = """
GRANT SELECT, INSERT (org_id, key, payment_intent_id, amount_cents, reason), UPDATE (refund_id, refusal)
    ON operator_refunds TO metering_app;
"""


def upgrade() -> None:
    """Make the table. The version before neither knows nor needs it."""
    op.execute(TABLE)
    op.execute(GRANTS)

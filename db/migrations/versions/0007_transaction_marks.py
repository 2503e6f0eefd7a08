"""Where in an org's list its transactions stand: so that no page and no count has to walk over millions of them."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE transaction_marks (
    org_id bigint NOT NULL,
    position bigint NOT NULL,
    transaction_id bigint NOT NULL,
    CONSTRAINT transaction_marks_pkey PRIMARY KEY (org_id, position)
);
CREATE UNIQUE INDEX transaction_marks_transaction_id_key ON transaction_marks (org_id, transaction_id);
CREATE TRIGGER transaction_marks_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transaction_marks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

GRANTS = """
GRANT SELECT, INSERT ON transaction_marks TO metering_app, metering_api;
"""


def upgrade() -> None:
    """Make the table, and let the API fill it."""
    for script in (TABLE, GRANTS):
        op.execute(script)

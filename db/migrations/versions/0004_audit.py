"""What the continuous audit has to remember: how far it has come, and what it has found."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Half of each page stays free: the rows of busy orgs are written once a minute.
TABLES = """
CREATE TABLE audit_passes (
    name text NOT NULL,
    started_at timestamptz NOT NULL,
    lease_until timestamptz NOT NULL,
    finished_at timestamptz,
    took_ms bigint,
    seen_to timestamptz,
    CONSTRAINT audit_passes_pkey PRIMARY KEY (name)
);

CREATE TABLE audited_accounts (
    org_id bigint NOT NULL,
    transaction_id bigint,
    balance_cents bigint NOT NULL,
    version bigint NOT NULL,
    transaction_count bigint NOT NULL,
    last_posted_at timestamptz,
    CONSTRAINT audited_accounts_pkey PRIMARY KEY (org_id)
) WITH (fillfactor = 50);

CREATE TABLE audit_suspects (
    org_id bigint NOT NULL,
    since timestamptz NOT NULL,
    CONSTRAINT audit_suspects_pkey PRIMARY KEY (org_id)
);

CREATE TABLE audit_findings (
    invariant text NOT NULL,
    violations bigint NOT NULL,
    found_at timestamptz NOT NULL,
    CONSTRAINT audit_findings_pkey PRIMARY KEY (invariant)
);
"""

GRANTS = """
GRANT SELECT, INSERT, UPDATE, DELETE ON audit_passes, audited_accounts, audit_suspects, audit_findings
    TO metering_app, metering_jobs;
"""


def upgrade() -> None:
    """Make the tables, and let the jobs write them."""
    for script in (TABLES, GRANTS):
        op.execute(script)

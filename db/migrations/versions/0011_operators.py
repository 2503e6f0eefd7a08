"""Operators, each with a role and a token, and the log of what they change."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE operators (
    id bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    role text NOT NULL,
    token_sha256 bytea NOT NULL,
    hint text NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    revoked_at timestamptz,
    CONSTRAINT operators_pkey PRIMARY KEY (id),
    CONSTRAINT operators_token_sha256_key UNIQUE (token_sha256),
    CONSTRAINT operators_role_check CHECK (role IN ('read', 'support', 'money'))
);
CREATE UNIQUE INDEX operators_name_key ON operators (name) WHERE revoked_at IS NULL;
CREATE TRIGGER operators_kept BEFORE DELETE OR TRUNCATE ON operators
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE operator_log (
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz DEFAULT clock_timestamp() NOT NULL,
    operator text NOT NULL,
    operator_id bigint,
    login text NOT NULL,
    action text NOT NULL,
    refused boolean DEFAULT false NOT NULL,
    org_id bigint,
    subject text,
    reason text,
    details json NOT NULL,
    CONSTRAINT operator_log_pkey PRIMARY KEY (id)
);
CREATE INDEX operator_log_org_id_idx ON operator_log (org_id, id) WHERE org_id IS NOT NULL;
CREATE TRIGGER operator_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

# Commands alone: a role that somebody has broken into can neither make itself an operator nor write into the log. Nobody writes
# `at`: it is Postgres's own clock's. A role or a name is never changed, and a revoked token stays so.
GRANTS = """
GRANT SELECT, INSERT (name, role, token_sha256, hint), UPDATE (revoked_at) ON operators TO metering_app;
GRANT SELECT, INSERT (operator, operator_id, login, action, refused, org_id, subject, reason, details)
    ON operator_log TO metering_app;
"""

# `revoked_at` can be written, so that revoking can be done; it can't be taken back, nor dated otherwise than now.
REVOKE_ONCE = """
CREATE FUNCTION keep_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.revoked_at IS NOT NULL THEN
        RAISE EXCEPTION 'operator % is revoked, and stays so', OLD.id
            USING ERRCODE = 'integrity_constraint_violation', HINT = 'Add an operator instead.';
    END IF;
    NEW.revoked_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER operators_revoked_once BEFORE UPDATE ON operators
    FOR EACH ROW EXECUTE FUNCTION keep_revoked();
"""


def upgrade() -> None:
    """Make the tables, and close them. The version before neither knows nor needs them: what it changes is in no log."""
    for script in (TABLES, REVOKE_ONCE, GRANTS):
        op.execute(script)

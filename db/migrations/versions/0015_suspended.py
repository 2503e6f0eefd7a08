"""An operator may suspend an org: its gate is closed, whatever the balance, and nothing is reloaded."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# Without a default, so no row is written. The check reads the accounts once, and they are few beside transactions.
COLUMNS = """
SET LOCAL lock_timeout = '5s';
ALTER TABLE accounts
    ADD COLUMN suspended_at timestamptz,
    ADD COLUMN suspended_version bigint,
    ADD CONSTRAINT accounts_suspended_check CHECK ((suspended_at IS NULL) = (suspended_version IS NULL));
"""

# The version before runs beside this one for a while. It would open the gate of a suspended org with the next debit or credit.
# Who knows of the suspension brings `suspended_version` along with `version`; who doesn't is refused with an error that every
# version takes for an outage: it loses nothing, tries again, and says why, and other meters take over what it had in hand.
# AFTER, because such a trigger costs an update nothing but its condition.
GUARD_ACCOUNTS = """
CREATE FUNCTION refuse_unaware_of_suspension() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'org % is suspended, and this program is of a version that doesn''t know it: stop it, and start the new one',
        NEW.org_id USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;
CREATE TRIGGER accounts_suspended AFTER UPDATE OF version ON accounts
    FOR EACH ROW WHEN (
        OLD.suspended_version IS NOT NULL AND NEW.version <> OLD.version
        AND NEW.suspended_version IS NOT NULL AND NEW.suspended_version <> NEW.version
    ) EXECUTE FUNCTION refuse_unaware_of_suspension();
"""

# Under the org's lock, which whoever makes a reload holds.
GUARD_RELOADS = """
CREATE FUNCTION refuse_reload_of_suspended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM accounts WHERE org_id = NEW.org_id AND suspended_at IS NOT NULL) THEN
        RAISE EXCEPTION 'org % is suspended, and is not reloaded', NEW.org_id
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payment_attempts_suspended BEFORE INSERT ON payment_attempts
    FOR EACH ROW WHEN (NEW.kind = 'auto_reload' AND NEW.status = 'open' AND NOT NEW.recovered)
    EXECUTE FUNCTION refuse_reload_of_suspended();
"""

# Whoever may change a balance says that it knows; only a command suspends and resumes.
GRANTS = """
GRANT UPDATE (suspended_version) ON accounts TO metering_app, metering_meter, metering_api, metering_jobs;
GRANT UPDATE (suspended_at) ON accounts TO metering_app;
"""


def upgrade() -> None:
    """Add the columns, and keep the version before from opening a gate that it doesn't know to be suspended."""
    for script in (COLUMNS, GUARD_ACCOUNTS, GUARD_RELOADS, GRANTS):
        op.execute(script)

"""Orgs are found by parts of their names, rejected events by the org and the call that they name; and may be dismissed."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# Beside `accounts`, whose rows change with every call: an index there on all parts of a name would be written again with each
# update that finds no room on its page. This table changes only when an org is made or renamed.
NAMES = """
CREATE TABLE org_names (
    org_id bigint NOT NULL,
    folded text NOT NULL,
    trigrams text[] NOT NULL,
    CONSTRAINT org_names_pkey PRIMARY KEY (org_id)
);
CREATE INDEX org_names_trigrams_idx ON org_names USING gin (trigrams);

CREATE FUNCTION trigrams_of(folded text) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(array_agg(DISTINCT substr(folded, at, 3)), '{}') FROM generate_series(1, length(folded) - 2) AS at
$$;

CREATE FUNCTION keep_org_name() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO org_names (org_id, folded, trigrams) VALUES (NEW.org_id, lower(NEW.name), trigrams_of(lower(NEW.name)))
        ON CONFLICT (org_id) DO UPDATE SET folded = EXCLUDED.folded, trigrams = EXCLUDED.trigrams;
    RETURN NULL;
END $$;
"""

# Once before the trigger, without a lock, and once after it, for the few that were made in between.
FILL = """
INSERT INTO org_names (org_id, folded, trigrams)
SELECT org_id, lower(name), trigrams_of(lower(name)) FROM accounts
WHERE NOT EXISTS (SELECT FROM org_names WHERE org_names.org_id = accounts.org_id)
"""
KEEP = """
CREATE TRIGGER accounts_keep_name AFTER INSERT OR UPDATE OF name ON accounts
    FOR EACH ROW EXECUTE FUNCTION keep_org_name();
"""

# By what the bytes say, JSON or not: what can't be read as an event may still name its org. Rejected events are few beside calls,
# and the version before fills these too.
EVENTS = """
ALTER TABLE rejected_events ADD COLUMN dismissed_at timestamptz, ADD COLUMN dismissed_reason text;
CREATE INDEX rejected_events_named_org_idx
    ON rejected_events (substring(encode(raw, 'escape') from '"org_id"\\s*:\\s*"?([0-9]{1,19})'), id);
CREATE INDEX rejected_events_named_call_idx ON rejected_events (
    substring(encode(raw, 'escape') from '"org_id"\\s*:\\s*"?([0-9]{1,19})'),
    substring(encode(raw, 'escape') from '"call_id"\\s*:\\s*"?([0-9]{1,19})')
);
-- The version before lives by rejected_events_waiting_idx.
CREATE INDEX rejected_events_open_idx ON rejected_events (id) WHERE replayed_at IS NULL AND dismissed_at IS NULL;
"""

GRANTS = """
GRANT UPDATE (name) ON accounts TO metering_app;
GRANT SELECT, INSERT, UPDATE (folded, trigrams) ON org_names TO metering_app;
GRANT UPDATE (dismissed_at, dismissed_reason) ON rejected_events TO metering_app;
"""


def upgrade() -> None:
    """Make what finds them. The names come first: they take longest, and hold no lock that a role waits for."""
    op.execute(NAMES)
    op.execute(FILL)
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(KEEP)
    op.execute(FILL)
    op.execute(EVENTS)
    op.execute(GRANTS)

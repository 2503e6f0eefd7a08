"""Orgs may have prices of their own; what isn't in force yet can be cancelled; each change raises the price book's version."""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# The table gets another name, because the version before takes every row of `tier_prices` for a tier's price that counts.
TABLES = """
SET LOCAL lock_timeout = '5s';
ALTER TABLE tier_prices RENAME TO prices;
ALTER SEQUENCE tier_prices_id_seq RENAME TO prices_id_seq;
ALTER TABLE prices RENAME CONSTRAINT tier_prices_pkey TO prices_pkey;
ALTER TABLE prices RENAME CONSTRAINT tier_prices_tier_fkey TO prices_tier_fkey;
ALTER TABLE prices
    DROP CONSTRAINT tier_prices_tier_in_force_from_key,
    DROP CONSTRAINT tier_prices_sane_check,
    ADD COLUMN org_id bigint,
    ADD COLUMN cancelled_at timestamptz,
    ADD COLUMN version bigint DEFAULT 0 NOT NULL,
    ALTER COLUMN rate_microusd_per_minute DROP NOT NULL,
    ALTER COLUMN increment_first_s DROP NOT NULL,
    ALTER COLUMN increment_next_s DROP NOT NULL,
    ALTER COLUMN minimum_s DROP NOT NULL,
    ALTER COLUMN connect_fee_microusd DROP NOT NULL,
    ADD CONSTRAINT prices_sane_check CHECK (
        rate_microusd_per_minute >= 0 AND increment_first_s > 0 AND increment_next_s > 0
        AND minimum_s >= 0 AND connect_fee_microusd >= 0
    ),
    ADD CONSTRAINT prices_end_check CHECK (
        num_nulls(rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd) = 0
        OR org_id IS NOT NULL
        AND num_nulls(rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd) = 5
    ),
    ADD CONSTRAINT prices_org_check CHECK (org_id IS NULL OR in_force_from IS NOT NULL);
DROP TRIGGER tier_prices_append_only ON prices;
UPDATE prices SET version = id;
CREATE UNIQUE INDEX prices_in_force_key ON prices (tier, org_id, in_force_from) NULLS NOT DISTINCT WHERE cancelled_at IS NULL;
CREATE INDEX prices_version_idx ON prices (version);

CREATE TABLE price_book (
    one boolean DEFAULT true NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT price_book_pkey PRIMARY KEY (one),
    CONSTRAINT price_book_one_check CHECK (one)
);
INSERT INTO price_book (version) SELECT coalesce(max(id), 0) FROM prices;
"""

# From 18 on a column's NOT NULL has a name, too.
NAMES = """
DO $$
DECLARE
    old name;
BEGIN
    FOR old IN SELECT conname FROM pg_constraint WHERE conrelid = 'prices'::regclass AND conname LIKE 'tier\\_prices\\_%' LOOP
        EXECUTE format('ALTER TABLE prices RENAME CONSTRAINT %I TO %I', old, substr(old, length('tier_') + 1));
    END LOOP;
END $$;
"""

# Whoever changes a price raises the version with it: the version before too, which writes through the view. The version is a
# time in milliseconds, so that one which a restored database has forgotten never comes again with another content.
# Once for a statement, because a row that is written 100,000 times in one transaction takes longer each time.
VERSION = """
CREATE FUNCTION raise_price_book_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE price_book
    SET version = greatest(version + 1, floor(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint);
    RETURN NULL;
END $$;
CREATE FUNCTION stamp_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := (SELECT version FROM price_book);
    RETURN NEW;
END $$;
CREATE TRIGGER prices_a_version BEFORE INSERT OR UPDATE ON prices
    FOR EACH STATEMENT EXECUTE FUNCTION raise_price_book_version();
CREATE TRIGGER prices_b_version BEFORE INSERT OR UPDATE ON prices
    FOR EACH ROW EXECUTE FUNCTION stamp_price();
"""

KEPT = """
CREATE FUNCTION refuse_price_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'integrity_constraint_violation',
            HINT = 'A price can only be cancelled, once, until 60 s before it is in force.';
END $$;
CREATE TRIGGER prices_append_only BEFORE DELETE OR TRUNCATE ON prices
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_cancelled_only BEFORE UPDATE ON prices
    FOR EACH ROW WHEN (
        OLD.cancelled_at IS NOT NULL
        OR (NEW.cancelled_at <= OLD.in_force_from - interval '60 s') IS NOT TRUE
        OR (NEW.id, NEW.tier, NEW.org_id, NEW.in_force_from, NEW.created_at) IS DISTINCT FROM
            (OLD.id, OLD.tier, OLD.org_id, OLD.in_force_from, OLD.created_at)
        OR (NEW.rate_microusd_per_minute, NEW.increment_first_s, NEW.increment_next_s, NEW.minimum_s, NEW.connect_fee_microusd)
            IS DISTINCT FROM
            (OLD.rate_microusd_per_minute, OLD.increment_first_s, OLD.increment_next_s, OLD.minimum_s, OLD.connect_fee_microusd)
    ) EXECUTE FUNCTION refuse_price_change();
"""

# The version before runs beside this one for a while. Until the book holds something that it doesn't know, it reads and sets
# prices as ever. From then on it would bill wrongly, and is refused with an error that every version takes for an outage: it
# loses nothing, tries again, and says why.
VERSION_BEFORE = """
CREATE FUNCTION prices_known_to_version_before() RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF EXISTS (SELECT FROM prices WHERE org_id IS NOT NULL OR cancelled_at IS NOT NULL) THEN
        RAISE EXCEPTION 'there are prices that this program''s version doesn''t know: stop it, and start the new one'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN true;
END $$;
CREATE VIEW tier_prices AS
    SELECT id, tier, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
        connect_fee_microusd, created_at
    FROM prices WHERE org_id IS NULL AND cancelled_at IS NULL AND prices_known_to_version_before();
"""

# The table keeps the rights that it had. On the view the version before has them too.
GRANTS = """
GRANT SELECT ON price_book, tier_prices TO metering_app, metering_meter, metering_api, metering_jobs;
GRANT UPDATE (version) ON price_book TO metering_app;
GRANT INSERT (org_id), UPDATE (cancelled_at) ON prices TO metering_app;
GRANT INSERT (
    tier, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd,
    created_at
) ON tier_prices TO metering_app;
"""


def upgrade() -> None:
    """Make the table of tiers' prices one of all prices, and a view of it for the version before."""
    for script in (TABLES, NAMES, VERSION, KEPT, VERSION_BEFORE, GRANTS):
        op.execute(script)

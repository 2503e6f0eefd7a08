"""Migrations make what the models say: once or twice, alone or side by side."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from db.models import Base
from db.postgres.schema import SchemaMismatchError, check_schema, expected_revision, migrate
from db.postgres.server_checks import UnfitServerError
from metering.sandbox.servers.embedded import Servers, running
from tests.conftest import Database
from tests.db import execute_as

REVISION = "0024"
MIGRATIONS = Path(__file__).parents[3] / "db" / "migrations"

# Alembic's own comparison passes over the conditions of indexes, identities and storage parameters.
CATALOG = """
    SELECT 'table', relname, format('%s %s %s', relname, relkind, reloptions)
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('i', 'v')
    UNION ALL
    SELECT 'column', relname, format('%s %s, not null %s, identity %L, default %s', attname,
        format_type(atttypid, atttypmod), attnotnull, attidentity, coalesce(pg_get_expr(adbin, adrelid), 'none'))
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'constraint', relname, format('%s %s', conname, pg_get_constraintdef(pg_constraint.oid))
    FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index', tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'
"""


def catalog(engine: Engine) -> set[tuple[str, str, str]]:
    """All that our tables consist of, in Postgres's own words, its two spellings of a default of 0 made one."""
    with engine.connect() as connection:
        rows = connection.execute(text(CATALOG)).all()
    return {
        (kind, table, definition.replace("'0'::bigint", "0"))
        for kind, table, definition in rows
        if table != "alembic_version"
    }


def engine_for(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


def test_migrating_again_changes_nothing(empty_database: Database) -> None:
    owner = engine_for(empty_database.owner_url)

    assert migrate(owner) == (None, REVISION)
    made = catalog(owner)
    assert {table for _, table, _ in made} >= {
        "accounts",
        "tiers",
        "prices",
        "transactions",
        "rejected_events",
    }

    assert migrate(owner) == (REVISION, REVISION)
    assert catalog(owner) == made


def test_a_database_with_rows_is_left_as_it_is(database: Database) -> None:
    execute_as(database.url, "INSERT INTO accounts (name, created_at) VALUES ('first', now())")

    assert migrate(engine_for(database.owner_url)) == (REVISION, REVISION)

    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM accounts")) == 1


def test_two_that_migrate_at_once_both_end_well(empty_database: Database) -> None:
    owner = engine_for(empty_database.owner_url)
    start = Barrier(2)

    def run(_: int) -> tuple[str | None, str]:
        start.wait(10)
        return migrate(owner)

    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(run, range(2)))

    assert sorted(ends, key=str) == [(REVISION, REVISION), (None, REVISION)]
    check_schema(empty_database.engine)


def test_the_role_may_be_made_by_another_meanwhile(tmp_path: Path) -> None:
    """It belongs to all databases of a server: the first migrations of two can meet over it."""
    with running(tmp_path / "data", valkey=False) as servers, ThreadPoolExecutor(1) as thread:
        admin = engine_for(servers.admin_database_url)
        with engine_for(servers.owner_database_url).connect() as other:
            other.execute(text("CREATE ROLE metering_app LOGIN"))
            migrating = thread.submit(migrate, engine_for(servers.owner_database_url))
            wait_until_a_session_waits(admin)
            other.commit()
        assert migrating.result(30) == (None, REVISION)
        check_schema(engine_for(servers.database_url))


def wait_until_a_session_waits(admin: Engine) -> None:
    """Return when some session waits for a lock."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with admin.connect() as connection:
            if connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                return
        time.sleep(0.01)
    pytest.fail("no session waits for a lock")


def test_files_are_named_by_their_revisions_which_follow_each_other() -> None:
    """So the newest is known without importing them."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
    assert [each.revision for each in scripts] == sorted(
        each.name.partition("_")[0] for each in (MIGRATIONS / "versions").glob("*.py")
    )
    assert scripts[-1].revision == expected_revision()
    assert [each.down_revision for each in scripts] == [None, *(each.revision for each in scripts[:-1])]


def test_models_and_migrations_say_the_same(database: Database, empty_database: Database) -> None:
    from_models = engine_for(empty_database.owner_url)
    Base.metadata.create_all(from_models)

    assert catalog(database.engine) == catalog(from_models)
    with database.engine.connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            # Of expressions Alembic compares the words, which Postgres changes; the catalogs have compared what they mean.
            "include_name": lambda name, kind, _: kind != "index" or "_named_" not in name,
            "include_object": lambda _, name, kind, *__: kind != "index" or "_named_" not in name,
        }
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


def test_an_empty_database_is_refused_with_the_remedy(empty_database: Database) -> None:
    with pytest.raises(SchemaMismatchError, match=rf"schema none.* needs {REVISION}: run `metering migrate`"):
        check_schema(engine_for(empty_database.owner_url))


def test_another_encoding_is_refused_with_the_remedy(servers: Servers) -> None:
    """Not all that a call may hold has a place in it."""
    admin = make_url(servers.admin_database_url).set(drivername="postgresql")
    with psycopg.connect(admin.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE latin OWNER metering_owner TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"
        )
        try:
            owner = engine_for(
                make_url(servers.owner_database_url)
                .set(database="latin")
                .render_as_string(hide_password=False)
            )
            for refused in (migrate, check_schema):
                with pytest.raises(UnfitServerError, match=r"encoding is LATIN1.* ENCODING 'UTF8'"):
                    refused(owner)
        finally:
            connection.execute("DROP DATABASE latin")


def test_another_revision_is_refused(database: Database) -> None:
    check_schema(database.engine)
    execute_as(database.owner_url, "UPDATE alembic_version SET version_num = '0000'")

    with pytest.raises(SchemaMismatchError, match="schema 0000"):
        check_schema(database.engine)


def test_there_is_no_way_back(database: Database) -> None:
    """A downgrade would have to drop history."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    revisions = list(ScriptDirectory.from_config(config).walk_revisions())
    assert [script.revision for script in revisions] == [
        REVISION,
        "0023",
        "0022",
        "0021",
        "0020",
        "0019",
        "0018",
        "0017",
        "0016",
        "0015",
        "0014",
        "0013",
        "0012",
        "0011",
        "0010",
        "0009",
        "0008",
        "0007",
        "0006",
        "0005",
        "0004",
        "0003",
        "0002",
        "0001",
    ]
    assert not any(hasattr(script.module, "downgrade") for script in revisions)
    assert expected_revision() == REVISION
    before = catalog(database.engine)
    with engine_for(database.owner_url).connect() as connection:
        config.attributes["connection"] = connection
        with pytest.raises(AttributeError, match="downgrade"):
            command.downgrade(config, "base")
    assert catalog(database.engine) == before


def test_keys_of_what_is_distributed_begin_with_the_org(database: Database) -> None:
    """So that an org's rows lie together. But a payment's credit is one over all orgs (docs/reference/money-rules.md#credits)."""
    with database.engine.connect() as connection:
        rows = connection.execute(
            text("""
                SELECT tablename, indexname, indexdef FROM pg_indexes
                WHERE tablename IN ('accounts', 'transactions', 'payment_attempts') AND indexdef LIKE 'CREATE UNIQUE%'
            """)
        ).all()
    assert {row.tablename for row in rows} == {"accounts", "transactions", "payment_attempts"}
    assert [row.indexname for row in rows if "(org_id" not in row.indexdef] == ["transactions_credit_key"]

"""Bringing a database to the schema that this code expects, and refusing to work on another."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from db.postgres.server_checks import check_server

_MIGRATIONS = Path(__file__).parents[1] / "migrations"
_ADVISORY_LOCK = 7_305_808_869_231_650_147
"""Two that migrate at once: the second waits, and finds nothing left to do."""


class SchemaMismatchError(Exception):
    """The database isn't at the schema that this code expects. The text says which is which, and the remedy."""


def _configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def expected_revision() -> str:
    """The newest migration in this code."""
    head = ScriptDirectory.from_config(_configuration()).get_current_head()
    if head is None:
        raise SchemaMismatchError("This installation holds no migrations: install it again.")
    return head


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Bring the database to the newest schema; give the revision before and after. Needs the tables' owner.

    Raises UnfitServerError.
    """
    check_server(engine)
    config = _configuration()
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = MigrationContext.configure(connection).get_current_revision()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return before, expected_revision()


def check_schema(engine: Engine) -> None:
    """Raise UnfitServerError, or SchemaMismatchError unless the database is at the schema that this code expects."""
    check_server(engine)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    expected = expected_revision()
    if found == expected:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_configuration()).walk_revisions()}
    remedy = (
        "run `metering migrate`" if found is None or found in known else "it is newer: update this program"
    )
    raise SchemaMismatchError(
        f"The database is at schema {found or 'none'}, this program needs {expected}: {remedy}."
    )

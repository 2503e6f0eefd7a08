"""Bringing a database to the schema that this code expects, and refusing to work on another."""

from pathlib import Path

from sqlalchemy import Connection, Engine, text

from db.postgres.server_checks import check_server

_MIGRATIONS = Path(__file__).parents[1] / "migrations"
_ADVISORY_LOCK = 7_305_808_869_231_650_147
"""Two that migrate at once: the second waits, and finds nothing left to do."""


class SchemaMismatchError(Exception):
    """The database isn't at the schema that this code expects. The text says which is which, and the remedy."""


def _revisions() -> list[str]:
    """Every migration in this code, oldest first: each file's name begins with its revision, and they follow each other.

    Alembic would know it too, by importing each of them: every command would pay for that, to compare one number.
    """
    return sorted(each.name.partition("_")[0] for each in (_MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def expected_revision() -> str:
    """The newest migration in this code."""
    revisions = _revisions()
    if not revisions:
        raise SchemaMismatchError("This installation holds no migrations: install it again.")
    return revisions[-1]


def _current_revision(connection: Connection) -> str | None:
    """What Alembic noted in the database; None where it made nothing."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Bring the database to the newest schema; give the revision before and after. Needs the tables' owner.

    Raises UnfitServerError.
    """
    from alembic import command  # noqa: PLC0415 - it takes a tenth of a second to load, and only this needs it
    from alembic.config import Config  # noqa: PLC0415 - likewise

    check_server(engine)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = _current_revision(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return before, expected_revision()


def check_schema(engine: Engine) -> None:
    """Raise UnfitServerError, or SchemaMismatchError unless the database is at the schema that this code expects."""
    check_server(engine)
    with engine.connect() as connection:
        found = _current_revision(connection)
    expected = expected_revision()
    if found == expected:
        return
    is_older = found is None or found in _revisions()
    remedy = "run `metering migrate`" if is_older else "it is newer: update this program"
    raise SchemaMismatchError(
        f"The database is at schema {found or 'none'}, this program needs {expected}: {remedy}."
    )

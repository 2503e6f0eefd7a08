"""What a Postgres must be for our ledger to be right on it, looked at before anything is begun there."""

from dataclasses import dataclass
from typing import Final

from psycopg import errors
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from db.postgres.engine import driver_connection
from db.postgres.session import PinnedConnection, SharedSessionError, server_pid

OLDEST: Final = 15
"""The major version from which on our tables can be made (UNIQUE NULLS NOT DISTINCT)."""

_ABOUT: Final = text(
    "SELECT current_setting('server_version_num')::integer, current_setting('server_version'),"
    " current_setting('server_encoding'), current_setting('fsync'), current_setting('full_page_writes')"
)


class UnfitServerError(Exception):
    """This Postgres, or the way to it, can't be worked with. The text names the remedy."""


@dataclass(frozen=True, slots=True)
class ServerAbout:
    """What a server says of itself."""

    version_number: int
    version: str
    encoding: str
    fsync: str
    full_page_writes: str

    @property
    def concerns(self) -> list[str]:
        """What is no reason to refuse it (some providers keep its disk in another way), but must be known."""
        off = " and ".join(name for name in ("fsync", "full_page_writes") if getattr(self, name) == "off")
        if not off:
            return []
        said = (
            f"Postgres runs with {off} off: unless its provider sees to that in another way, a crash of its machine may lose"
            " debits that were committed, or damage the ledger."
        )
        return [said]


def read_about(connection: Connection) -> ServerAbout:
    """Ask the server."""
    return ServerAbout(*connection.execute(_ABOUT).one())


def check_server(engine: Engine) -> ServerAbout:
    """Raise UnfitServerError unless our statements can be right there: its version, its encoding, the sessions of a pooler."""
    try:
        return _check(engine)
    except DBAPIError as error:
        if isinstance(error.orig, errors.ProtocolViolation) and "pooling mode" in str(error.orig):
            raise UnfitServerError(f"METERING_DATABASE_URL: {SharedSessionError()}.") from error
        raise


def _check(engine: Engine) -> ServerAbout:
    with engine.connect() as connection:
        about = read_about(connection)
        _require_fit(about)
        driver = driver_connection(connection)
        connection.rollback()
        if driver.info.backend_pid != server_pid(driver):  # a pooler tells a number of its own
            _check_pooler(engine, connection)
    return about


def _require_fit(about: ServerAbout) -> None:
    if about.version_number < OLDEST * 10_000:
        raise UnfitServerError(
            f"Postgres is of version {about.version}, this program needs {OLDEST} or newer: upgrade the server, or let"
            " METERING_DATABASE_URL lead to another."
        )
    if about.encoding != "UTF8":
        # Another encoding has no place for much of what calls may hold: they would be rejected one by one.
        raise UnfitServerError(
            f"The database's encoding is {about.encoding}, this program needs UTF8: make another by CREATE DATABASE ..."
            " ENCODING 'UTF8' TEMPLATE template0, and run `metering migrate` there."
        )


def _check_pooler(engine: Engine, ours: Connection) -> None:
    """Look whether a second connection comes into the session of the first, or drives it into another."""
    try:
        with engine.connect() as second:
            # PgBouncer gives whoever comes next the session that was free last: that of the first, where it counts as free.
            _ask(ours)
            second.execute(text("SELECT 1"))  # in a transaction, which holds on to whatever session it has
            _ask(ours)
    except SharedSessionError as error:
        raise UnfitServerError(f"METERING_DATABASE_URL: {error}.") from error


def _ask(connection: Connection) -> None:
    driver = driver_connection(connection)
    if isinstance(driver, PinnedConnection):
        driver.ask_again()

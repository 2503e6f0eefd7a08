"""What a database error means: a lock, an outage, a refusal (retry, with back-off), or a poison message (look for the event)."""

from enum import Enum, auto
from typing import Final

import psycopg
from psycopg import errors
from sqlalchemy.exc import DBAPIError

from db.postgres.refusals import RefusedError

# Authorization; no such database; no such schema; no such table, column, function, or no right; not supported (by Citus, say).
_REFUSES: Final = ("28", "3D", "3F", "42", "0A")


class Failure(Enum):
    """What to do about an error."""

    LOCKED = auto()
    """Another transaction holds what is needed: try again at once, and see who holds it."""
    OUTAGE = auto()
    """The database, or the way to it, isn't fit for work: wait, then do the same again. The events are not to blame."""
    REFUSED = auto()
    """The database is there and won't do it, until somebody mends something: a password, a right, a table, a pooler's mode.

    Tried again like an outage, because it is mended there and not here; but told as what it is (`metering.runtime.health`).
    """
    POISON = auto()
    """The work itself can't be done: some event in it is to blame."""


def driver_error(error: BaseException) -> psycopg.Error | None:
    """The database driver's own error in `error`, if it is one."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.Error):
        return error.orig
    return error if isinstance(error, psycopg.Error) else None


def says_read_only(error: BaseException) -> bool:
    """Whether the server says that nothing can be written: it is a standby, or the database was made read-only.

    A connection that says so is left at once: it would say so for ever, though a server that writes can be reached by now.
    """
    return isinstance(driver_error(error), errors.ReadOnlySqlTransaction)


def diagnose(error: Exception) -> Failure:
    """Tell what `error`, raised while a batch was posted, calls for.

    Only what the data itself can cause (SQLSTATE classes 22 and 23, values the driver can't send, or an error in our own code) is
    put down to an event. A missing table or right would fail every event alike: nothing may be rejected for it.
    """
    cause = driver_error(error)
    if cause is None:
        # SQLAlchemy's own errors (no connection left in the pool, ...) and the system's (no memory, ...) concern no event.
        outage = isinstance(error, OSError | MemoryError) or type(error).__module__.startswith("sqlalchemy.")
        return Failure.OUTAGE if outage else Failure.POISON
    if isinstance(cause, errors.LockNotAvailable | errors.DeadlockDetected | errors.SerializationFailure):
        return Failure.LOCKED
    if cause.sqlstate is None:
        return _without_sqlstate(cause)
    if cause.sqlstate.startswith(("22", "23")):
        return Failure.POISON
    return Failure.REFUSED if cause.sqlstate.startswith(_REFUSES) else Failure.OUTAGE


def _without_sqlstate(cause: psycopg.Error) -> Failure:
    """Of what the driver itself says, or libpq."""
    if isinstance(cause, RefusedError | psycopg.NotSupportedError):
        return Failure.REFUSED
    if isinstance(cause, psycopg.DataError | psycopg.ProgrammingError):
        return Failure.POISON
    return Failure.OUTAGE


def is_away(error: Exception) -> bool:
    """Whether nothing can be done at the moment, with whatever data: the database is away, or refuses."""
    return diagnose(error) in {Failure.OUTAGE, Failure.REFUSED}

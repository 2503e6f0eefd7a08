"""What a database error means: lock conflict or outage (retry, with back-off), or a poison message (look for the event)."""

from enum import Enum, auto

import psycopg
from psycopg import errors
from sqlalchemy.exc import DBAPIError


class Failure(Enum):
    """What to do about an error."""

    LOCKED = auto()
    """Another transaction holds what is needed: try again at once, and see who holds it."""
    OUTAGE = auto()
    """The database, or the way to it, isn't fit for work: wait, then do the same again. The events are not to blame."""
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
    put down to an event. A missing table or right would fail every event alike, so it counts as an outage: nothing may be
    rejected for it.
    """
    cause = driver_error(error)
    if cause is None:
        # SQLAlchemy's own errors (no connection left in the pool, ...) and the system's (no memory, ...) concern no event.
        outage = isinstance(error, OSError | MemoryError) or type(error).__module__.startswith("sqlalchemy.")
        return Failure.OUTAGE if outage else Failure.POISON
    if isinstance(cause, errors.LockNotAvailable | errors.DeadlockDetected | errors.SerializationFailure):
        return Failure.LOCKED
    if cause.sqlstate is not None:
        return Failure.POISON if cause.sqlstate[:2] in {"22", "23"} else Failure.OUTAGE
    return (
        Failure.POISON if isinstance(cause, psycopg.DataError | psycopg.ProgrammingError) else Failure.OUTAGE
    )

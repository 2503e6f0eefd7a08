# What may have failed is imported only once something has.
"""What went wrong, in one sentence for the person at the command line."""

from typing import Final

MAX_QUOTED_CHARS: Final = 400


class CommandError(Exception):
    """A command can't do what it was asked to. The text is a sentence that names the cause and the remedy."""


def explain(error: Exception) -> str | None:
    """The sentence for an error that can happen to anyone; None for one that nobody foresaw, which keeps its traceback."""
    if isinstance(error, CommandError):
        return str(error)

    import redis
    from alembic.util import CommandError as MigrationError

    from db.accounts.api_keys import ApiKeyError
    from db.ledger.adjustments import AdjustmentConflictError
    from db.ledger.prices import PriceError
    from db.models.errors import OrgError
    from db.operators.log import OperatorRevokedError
    from db.operators.operators import OperatorError
    from db.postgres.schema import SchemaMismatchError
    from metering.runtime.metrics_server import MetricsPortError
    from metering.runtime.settings import SettingsError

    named = (
        SettingsError
        | SchemaMismatchError
        | OrgError
        | PriceError
        | AdjustmentConflictError
        | ApiKeyError
        | OperatorError
        | OperatorRevokedError
        | MetricsPortError
    )
    if isinstance(error, named):
        return str(error)
    if isinstance(error, MigrationError):
        return f"The database can't be migrated: {quoted(error)}; is its schema of a newer version of this program?"
    if isinstance(error, redis.RedisError):
        return f"Redis can't be reached, or refuses: {quoted(error)}; see to the server, or to METERING_REDIS_URL."
    return _explain_postgres(error)


def _explain_postgres(error: Exception) -> str | None:
    from psycopg import errors

    from db.postgres.failures import Failure, diagnose, driver_error

    cause = driver_error(error)
    if cause is None or diagnose(error) is Failure.POISON:
        return None
    said = cause.diag.message_primary or quoted(cause)
    if isinstance(cause, errors.LockNotAvailable):
        return "Another transaction holds what this needs and does not end: try again in a moment."
    if isinstance(cause, errors.ReadOnlySqlTransaction):
        return (
            "Postgres takes no writes there: it is a standby, or the database was made read-only; see to the server, or let"
            " METERING_DATABASE_URL name the one that writes."
        )
    if isinstance(cause, errors.InsufficientPrivilege):
        return (
            f"Postgres refuses: {said}; METERING_DATABASE_URL must name a role that may do this"
            " (`metering migrate` needs the tables' owner)."
        )
    if 'role "metering_app" does not exist' in said:
        return f"Postgres refuses: {said}; run `metering migrate` first."
    return f"Postgres can't be reached, or refuses: {said}; see to the server, or to METERING_DATABASE_URL."


def quoted(error: BaseException) -> str:
    """An error's own words in one line, of bounded length and without a full stop."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:MAX_QUOTED_CHARS].rstrip(". ")

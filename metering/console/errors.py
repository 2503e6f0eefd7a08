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

    from alembic.util import CommandError as MigrationError

    from db.accounts.api_keys import ApiKeyError
    from db.ledger.adjustments import AdjustmentConflictError
    from db.ledger.prices import PriceError
    from db.ledger.repricings import RepricingError
    from db.models.errors import OrgError
    from db.operators.log import OperatorRevokedError
    from db.operators.operators import OperatorError
    from db.postgres.schema import SchemaMismatchError
    from db.postgres.server_checks import UnfitServerError
    from metering.runtime.metrics_server import MetricsPortError
    from metering.runtime.redis_checks import UnfitRedisError
    from metering.runtime.settings import SettingsError

    named = (
        SettingsError
        | SchemaMismatchError
        | UnfitServerError
        | UnfitRedisError
        | OrgError
        | PriceError
        | RepricingError
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
    return _explain_redis(error) or _explain_postgres(error)


def _explain_postgres(error: Exception) -> str | None:
    from psycopg import errors

    from db.postgres.failures import Failure, diagnose, driver_error
    from db.postgres.refusals import RefusedError

    cause = driver_error(error)
    if cause is None or diagnose(error) is Failure.POISON:
        return None
    if isinstance(cause, errors.LockNotAvailable):
        return "Another transaction holds what this needs and does not end: try again in a moment."
    if isinstance(cause, errors.ReadOnlySqlTransaction):
        return (
            "Postgres takes no writes there: it is a standby, or the database was made read-only; see to the server, or let"
            " METERING_DATABASE_URL name the one that writes."
        )
    said = cause.diag.message_primary or quoted(cause)
    if diagnose(error) is not Failure.REFUSED:
        return (
            f"Postgres can't be reached, or refuses: {said}; see to the server, or to METERING_DATABASE_URL."
        )
    remedies: dict[type[Exception], str] = {
        errors.InsufficientPrivilege: "METERING_DATABASE_URL must name a role that may do this (`metering migrate` needs the"
        " tables' owner)",
        errors.UndefinedTable: "`metering migrate` brings the schema up to date",
        errors.UndefinedColumn: "`metering migrate` brings the schema up to date",
        RefusedError: "METERING_DATABASE_URL must name a database, a user and a password that the server takes (`metering"
        " migrate` makes the roles, or deploy/postgres/roles.sql)",
    }
    remedy = remedies.get(type(cause), "METERING_DATABASE_URL must lead to a Postgres that can do this")
    return f"Postgres refuses: {said}; {remedy}."


def _explain_redis(error: Exception) -> str | None:
    import redis

    from metering.runtime.redis_failures import refuses

    if not isinstance(error, redis.RedisError):
        return None
    if refuses(error):
        return f"Redis refuses: {quoted(error)}; METERING_REDIS_URL must name a user, with the password and the rights for this."
    return f"Redis can't be reached, or can't do it now: {quoted(error)}; see to the server, or to METERING_REDIS_URL."


def quoted(error: BaseException) -> str:
    """An error's own words in one line, of bounded length and without a full stop."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:MAX_QUOTED_CHARS].rstrip(". ")

"""Telling a server that refuses a connection from one that is away.

libpq tells no SQLSTATE for a connection that failed, and servers say why in their own language. But a second look tells whether
somebody answers there who could serve: it needs no password.
"""

import re
from typing import Final, NoReturn

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from metering.runtime.health import HEALTH, POSTGRES

_LOOK_S: Final = 2
"""How long the second look may take, in whole seconds."""
_LOOKED_AT: Final = frozenset(
    {"host", "hostaddr", "port", "dbname", "user", "sslmode", "sslrootcert", "sslcert", "sslkey", "service"}
)
_CLIENT_REFUSES: Final = re.compile(
    r"certificate|SSL error|does not support SSL|no password supplied|SCRAM|channel binding", re.IGNORECASE
)
"""What libpq itself doesn't go on with. Also where nobody could be asked."""
_PASSES: Final = re.compile(
    r"too many|connection slots|session is read-only|hot standby|the database system is|canceling|terminating connection"
    # PgBouncer, which speaks English alone: what it says of the server behind it.
    r"|cannot connect to server|server down|server_login_retry|server conn|server closed|query_wait_timeout|no more connections"
    r"|pooler|pgbouncer|database is being|shutting down|client_login_timeout|idle timeout",
    re.IGNORECASE,
)
"""What is said by who could serve, and passes by itself. In another language it counts as refused, which is told, and tried again
all the same."""


class RefusedError(psycopg.OperationalError):
    """A server answers, and takes no connection from us: a wrong password, a database that isn't there, a rule against us."""


def raise_refusal(error: psycopg.OperationalError) -> NoReturn:
    """Raise RefusedError for what a server refused, and tell it; `error` itself for one that is away, or starts."""
    said = str(error)
    if _PASSES.search(said) is None and (_CLIENT_REFUSES.search(said) or _somebody_answers(error)):
        HEALTH.connection_refused(POSTGRES, said)
        raise RefusedError(said) from error
    raise error


def _somebody_answers(error: psycopg.OperationalError) -> bool:
    if error.pgconn is None or isinstance(error, psycopg.errors.ConnectionTimeout):
        return False
    said = {
        option.keyword.decode(): option.val.decode()
        for option in error.pgconn.info
        if option.val and option.keyword.decode() in _LOOKED_AT
    }
    return PGconn.ping(make_conninfo("", **said, connect_timeout=_LOOK_S).encode()) == Ping.OK

"""Ending our own sessions that hold locks but don't move: a meter that was stopped in the middle of its transaction."""

from typing import Final

import psycopg
from sqlalchemy import Engine, text

from db.postgres.session import server_pid

BLOCKER_AGE_S: Final = 10
"""How old a transaction must be before it may be ended for standing in the way; ours take milliseconds."""

# Only sessions of the product's roles: a backup or somebody's psql is not ours to end. A function, with its owner's rights,
# because the one that is stopped may be of another role than the one that waits.
_END_BLOCKERS: Final = text("SELECT end_blockers(:waiting_pid, :age_s)")


def end_blockers(engine: Engine, waiting: psycopg.Connection, *, age_s: float = BLOCKER_AGE_S) -> list[int]:
    """End the sessions that `waiting` waits for, if they are ours and their transaction is older than `age_s` seconds.

    To be called from another thread while `waiting` waits for a lock; uses a connection of its own. Returns the ended sessions'
    process ids. (A stopped session's own time-outs were seen not to fire.)
    """
    with engine.connect() as connection:
        ended = connection.scalars(_END_BLOCKERS, {"waiting_pid": server_pid(waiting), "age_s": age_s})
        return list(ended)

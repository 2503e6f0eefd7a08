"""Ending our own sessions that hold locks but don't move: a meter that was stopped in the middle of its transaction."""

from typing import Final

import psycopg
from sqlalchemy import Engine, text

BLOCKER_AGE_S: Final = 10
"""How old a transaction must be before it may be ended for standing in the way; ours take milliseconds."""

# Only sessions of our own role: a backup or somebody's psql is not ours to end.
_END_BLOCKERS: Final = text("""
    SELECT blocker.pid, pg_terminate_backend(blocker.pid)
    FROM unnest(pg_blocking_pids(:waiting_pid)) AS blocking (pid)
    JOIN pg_stat_activity AS blocker USING (pid)
    WHERE blocker.usename = current_user AND blocker.datname = current_database()
        AND blocker.xact_start < clock_timestamp() - make_interval(secs => :age_s)
""")


def end_blockers(engine: Engine, waiting: psycopg.Connection, *, age_s: float = BLOCKER_AGE_S) -> list[int]:
    """End the sessions that `waiting` waits for, if they are ours and their transaction is older than `age_s` seconds.

    To be called from another thread while `waiting` waits for a lock; uses a connection of its own. Returns the ended sessions'
    process ids. (A stopped session's own time-outs were seen not to fire.)
    """
    with engine.connect() as connection:
        rows = connection.execute(_END_BLOCKERS, {"waiting_pid": waiting.info.backend_pid, "age_s": age_s})
        return [pid for pid, ended in rows if ended]

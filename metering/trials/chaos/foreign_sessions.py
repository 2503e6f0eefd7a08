"""Somebody else's sessions in our database, who lock what we need, and a server that can't serialize."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import psycopg

_LOCK: Final = "SELECT FROM accounts WHERE org_id = %s FOR UPDATE"
BETWEEN_LOCKS_S: Final = 0.3
STATISTICS_S: Final = 1.0
"""How long sessions take at least to tell the server what has happened in them."""

_FAIL: Final = """
    CREATE OR REPLACE FUNCTION chaos_fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF random() < 0.4 THEN
            RAISE EXCEPTION 'could not serialize access due to chaos' USING ERRCODE = 'serialization_failure';
        END IF;
        RETURN NULL;
    END $$;
    CREATE OR REPLACE TRIGGER chaos_fail AFTER UPDATE ON accounts FOR EACH STATEMENT EXECUTE FUNCTION chaos_fail();
"""
_STOP_FAILING: Final = "DROP TRIGGER IF EXISTS chaos_fail ON accounts; DROP FUNCTION IF EXISTS chaos_fail()"


class ForeignSessions:
    """Sessions of a superuser; `admin_url` is libpq's, for the product's database. Methods raise psycopg.Error.

    Those that hold locks raise only if they never came to hold one: after that, Postgres may be killed under them.
    """

    def __init__(self, admin_url: str, org_ids: Sequence[int]) -> None:
        self._admin_url = admin_url
        self._org_ids = sorted(org_ids)
        self.deadlocks = 0
        """How many Postgres has found, as far as it was asked before it was killed."""

    def deadlock(self, lasts_s: float, seed: int) -> None:
        """Lock pairs of accounts, the higher id first, again and again: whoever locks in order dies of it, not we."""
        randomness = random.Random(seed)  # noqa: S311 - to be repeatable, not secret
        ends_s = time.monotonic() + lasts_s
        settings = "SET deadlock_timeout = '1min'; SET lock_timeout = '10s'"
        with _unless_locked() as locked, self._session(settings) as connection:
            before = _found(connection)
            while time.monotonic() < ends_s:
                low, high = sorted(randomness.sample(self._org_ids, 2))
                with connection.transaction(force_rollback=True):
                    connection.execute(_LOCK, (high,))
                    locked.set()
                    time.sleep(BETWEEN_LOCKS_S)
                    connection.execute(_LOCK, (low,))
            time.sleep(STATISTICS_S)
            self.deadlocks += max(_found(connection) - before, 0)

    def hold(self, lasts_s: float, seed: int) -> None:
        """Hold a third of the accounts locked, for longer than anybody of ours waits for a lock."""
        randomness = random.Random(seed)  # noqa: S311 - to be repeatable, not secret
        held = sorted(randomness.sample(self._org_ids, max(len(self._org_ids) // 3, 1)))
        with (
            _unless_locked() as locked,
            self._session("SET lock_timeout = '10s'") as connection,
            connection.transaction(force_rollback=True),
        ):
            connection.execute(
                "SELECT FROM accounts WHERE org_id = ANY(%s) ORDER BY org_id FOR UPDATE", (held,)
            )
            locked.set()
            time.sleep(lasts_s)

    def begin_failing(self) -> None:
        """Let two transactions of five that change balances fail as if they could not be serialized."""
        with self._session("SET lock_timeout = '10s'") as connection:
            connection.execute(_FAIL)

    def stop_failing(self) -> None:
        """End that: also where a restore has brought it back, or whoever began it was cut off."""
        with self._session("SET lock_timeout = '10s'") as connection:
            connection.execute(_STOP_FAILING)

    @contextmanager
    def _session(self, settings: str) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self._admin_url, autocommit=True, connect_timeout=5) as connection:
            if settings:
                connection.execute(settings)
            yield connection


@contextmanager
def _unless_locked() -> Iterator[threading.Event]:
    """Take an error for the end of what was done, if a lock was held by then."""
    locked = threading.Event()
    try:
        yield locked
    except psycopg.OperationalError:
        if not locked.is_set():
            raise


def _found(connection: psycopg.Connection) -> int:
    """How many deadlocks the server has found since its statistics began, which a crash sets back."""
    row = connection.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone()
    return 0 if row is None else int(row[0])

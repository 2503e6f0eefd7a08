"""Postgres and Valkey of a test's own, to be killed and brought back."""

import itertools
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from db.postgres.engine import make_engine
from db.postgres.schema import migrate
from metering.sandbox.servers.embedded import Servers, postgres_pid, running, valkey_pid
from tests.workers.processes import wait_until


class OwnServers:
    """The servers of a data directory. Those that run when the stack unwinds are stopped then."""

    def __init__(self, data_dir: Path, stack: ExitStack) -> None:
        self._data_dir = data_dir
        self._stack = stack
        self._numbers = itertools.count(1)

    def start(self, *, postgres: bool = True, valkey: bool = True) -> Servers:
        """Start what doesn't run, with the data that it had."""
        return self._stack.enter_context(running(self._data_dir, postgres=postgres, valkey=valkey))

    def make_database(self) -> str:
        """A migrated database of its own, as the meters' role sees it. Both servers must run."""
        servers = self.start()
        owner = make_engine(servers.owner_database_url, application_name="test")
        migrate(owner)
        owner.dispose()
        name = f"test_{next(self._numbers)}"
        admin_url = make_url(servers.admin_database_url).set(drivername="postgresql")
        with psycopg.connect(admin_url.render_as_string(hide_password=False), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE metering OWNER metering_owner".encode())
        return make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)

    def kill_postgres(self) -> None:
        """SIGKILL to the postmaster: its sessions end without a word, what isn't committed is gone."""
        self._end(postgres_pid, signal.SIGKILL)

    def stop_postgres(self) -> None:
        """Stop Postgres cleanly; what it is doing is rolled back."""
        self._end(postgres_pid, signal.SIGINT)

    def kill_valkey(self) -> None:
        self._end(valkey_pid, signal.SIGKILL)

    def _end(self, pid_of: Callable[[Path], int | None], how: signal.Signals) -> None:
        pid = pid_of(self._data_dir)
        assert pid is not None
        os.kill(pid, how)
        wait_until(lambda: pid_of(self._data_dir) is None, "ending a server")

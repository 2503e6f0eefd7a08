"""Two embedded Postgres servers, one streaming to the other: for trying what a switch-over does to who is connected."""

import os
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg

from metering.sandbox.servers.account import ServerError, account_for
from metering.sandbox.servers.daemon import POLL_S
from metering.sandbox.servers.postgres import PORT, SUPERUSER, Postgres
from metering.sandbox.servers.sockets import sockets_dir_of

STREAMING_LIMIT_S: Final = 30.0


class ReplicatedPostgres:
    """A primary and its standby, in two directories under `directory`; both run while this is entered."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stops = ExitStack()

    def __enter__(self) -> Self:
        directories = [self._directory / name for name in ("a", "b")]
        for each in directories:
            each.mkdir(mode=0o700, parents=True)
        self._account = account_for(self._directory, [Postgres.program()])
        servers = []
        for each in (path.resolve() for path in directories):
            self._account.own(each)
            self._account.make_dir(sockets_dir_of(each))
            servers.append(Postgres(each, sockets_dir_of(each)))
            self._stops.callback(servers[-1].stop)
        self.primary, self.standby = servers
        try:
            self.primary.start(self._account)
            self._copy_to_standby()
            self.standby.start(self._account)
            self.wait_until_streaming()
        except BaseException:
            self._stops.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop both."""
        self._stops.close()

    def switch_over(self) -> None:
        """Stop the primary cleanly, promote its standby, and bring the old primary back as the standby of the new one.

        Nothing is lost: a primary that is stopped cleanly ends only when its standby has all that it has. Sessions on the old
        one end, and whoever connects to it afterwards finds a server that reads and doesn't write.
        """
        self.hand_over()
        self.rejoin()

    def hand_over(self) -> None:
        """The first half of it: the old primary stays away."""
        self.wait_until_streaming()
        self.primary.stop()
        self._promote()

    def rejoin(self) -> None:
        """The other half."""
        old, new = self.standby, self.primary
        cluster_dir = old.data_dir / "postgres"
        with (cluster_dir / "postgresql.auto.conf").open("a", encoding="utf-8") as settings:
            settings.write(f"primary_conninfo = '{_conninfo(new)}'\n")
        (cluster_dir / "standby.signal").touch()
        self._account.own(cluster_dir / "standby.signal")
        old.start(self._account)
        self.wait_until_streaming()

    def commit_on_both(self, *, wanted: bool) -> None:
        """Have the primary acknowledge a commit only once its standby has it on disk, too; or no longer."""
        value = "'*'" if wanted else "''"
        execute(self.primary, f"ALTER SYSTEM SET synchronous_standby_names = {value}")
        execute(self.primary, "SELECT pg_reload_conf()")

    def fail_over(self) -> None:
        """Kill the primary and promote its standby. What was acknowledged and not on the standby is lost."""
        pid = self.primary.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        self.primary.stop()  # returns when the last of its processes has gone
        self._promote()

    def rebuild_standby(self) -> None:
        """Make the server that was killed anew, as a copy of the primary."""
        shutil.rmtree(self.standby.data_dir / "postgres")
        self._copy_to_standby()
        self.standby.start(self._account)
        self.wait_until_streaming()

    def _promote(self) -> None:
        execute(self.standby, "SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary

    def wait_until_streaming(self) -> None:
        """Return once the standby has all that the primary has written so far. Raises ServerError where that takes too long."""
        behind = "SELECT NOT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn >= '{}')"
        [[written]] = execute(self.primary, "SELECT pg_current_wal_lsn()")
        deadline_s = time.monotonic() + STREAMING_LIMIT_S
        while execute(self.primary, behind.format(written)) == [(True,)]:
            if time.monotonic() > deadline_s:
                raise ServerError(f"The standby hasn't caught up within {STREAMING_LIMIT_S:.0f} s.")
            time.sleep(POLL_S)

    def _copy_to_standby(self) -> None:
        program = Postgres.program().with_name("pg_basebackup")
        options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast"]
        command: list[str | Path] = [program, "--dbname", _conninfo(self.primary), "-D", "postgres", *options]
        self._account.run(command, self.standby.data_dir)


def execute(server: Postgres, statement: str) -> list[tuple[object, ...]]:
    """What `statement` gives, asked as superuser of the database `postgres`."""
    with psycopg.connect(f"{_conninfo(server)} dbname=postgres", autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _conninfo(server: Postgres) -> str:
    return f"host={server.sockets_dir} port={PORT} user={SUPERUSER}"

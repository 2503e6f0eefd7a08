"""Two embedded Postgres servers, one streaming to the other: for trying what a switch-over does to who is connected."""

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
        old, new = self.primary, self.standby
        self.wait_until_streaming()
        old.stop()
        execute(new, "SELECT pg_promote()")
        self.primary, self.standby = new, old
        cluster_dir = old.data_dir / "postgres"
        with (cluster_dir / "postgresql.auto.conf").open("a", encoding="utf-8") as settings:
            settings.write(f"primary_conninfo = '{_conninfo(new)}'\n")
        (cluster_dir / "standby.signal").touch()
        self._account.own(cluster_dir / "standby.signal")
        old.start(self._account)
        self.wait_until_streaming()

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

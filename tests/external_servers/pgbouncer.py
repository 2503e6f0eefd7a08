"""PgBouncer between a role and Postgres."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from psycopg.pq import PGconn, Ping

from tests.external_servers.postgres import as_nobody
from tests.external_servers.process import HOST, Process, apt_program, free_port


class PgBouncer(Process):
    """In front of the Postgres whose socket lies in `sockets_dir`. Everybody may come in; it logs in there as who came."""

    def __init__(
        self, directory: Path, sockets_dir: Path, server_port: int, pool_mode: str, more: Mapping[str, str]
    ) -> None:
        self.port = free_port()
        directory.mkdir(parents=True)
        said = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": "users",
            "admin_users": "admin",
            "pool_mode": pool_mode,
            "server_login_retry": "1",
            **more,
        }
        (directory / "users").write_text(
            "".join(f'"{name}" ""\n' for name in ("metering_app", "metering_owner", "postgres", "admin"))
        )
        self._settings = said
        self._lead(directory, sockets_dir, server_port)
        # It refuses to run as root.
        for path in (directory, *directory.iterdir()):
            path.chmod(0o777)
        command: list[str | Path] = [apt_program("pgbouncer", "pgbouncer"), "bouncer.ini"]
        super().__init__(directory, [*as_nobody(), *command], self.answers)

    def _lead(self, directory: Path, sockets_dir: Path, server_port: int) -> None:
        (directory / "bouncer.ini").write_text(
            f"[databases]\n* = host={sockets_dir} port={server_port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in self._settings.items())
        )

    def lead_to(self, sockets_dir: Path, server_port: int) -> None:
        """Have it lead to another server, without a restart."""
        self._lead(self.directory, sockets_dir, server_port)
        self.send(signal.SIGHUP)

    def answers(self) -> bool:
        conninfo = f"host={HOST} port={self.port} user=admin dbname=pgbouncer connect_timeout=2"
        return PGconn.ping(conninfo.encode()) == Ping.OK

    def url(self, role: str, database: str) -> str:
        return f"postgresql://{role}@{HOST}:{self.port}/{database}"


@contextmanager
def pooled(
    directory: Path,
    sockets_dir: Path,
    server_port: int,
    pool_mode: str = "session",
    more: Mapping[str, str] | None = None,
) -> Iterator[PgBouncer]:
    """A running one."""
    found = PgBouncer(directory, sockets_dir, server_port, pool_mode, more or {})
    found.start()
    try:
        yield found
    finally:
        found.stop()

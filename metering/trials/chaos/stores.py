"""What is done to the embedded servers of a run: they are killed, started again, backed up and restored."""

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from metering.sandbox.servers.account import account_for
from metering.sandbox.servers.embedded import postgres_pid, running, valkey_pid
from metering.sandbox.servers.locks import opened, try_exclusive
from metering.sandbox.servers.postgres import PORT, SUPERUSER, Postgres
from metering.sandbox.servers.sockets import sockets_dir_of

GONE_LIMIT_S: Final = 60.0
POLL_EVERY_S: Final = 0.02


class StoreError(Exception):
    """A server could not be killed, backed up or restored. The text says what failed."""


class Stores:
    """Postgres and Valkey of a data directory that the caller runs (`servers.running`)."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._backups_dir = data_dir / "backups"
        self._backup: Path | None = None
        self._taken = 0
        self.restores = 0
        """How many restores have begun: what straddles one may have been forgotten."""
        self._postgres = threading.Lock()
        self._valkey = threading.Lock()

    def kill_valkey(self, away_s: float) -> None:
        """SIGKILL, and the server again after `away_s`, from its append-only file."""
        with self._valkey:
            _kill(valkey_pid(self._data_dir), self._data_dir / "valkey.lock")
            time.sleep(away_s)
            self._start(postgres=False)

    def kill_postgres(self, away_s: float) -> None:
        """SIGKILL of the postmaster, and the server again after `away_s`, by crash recovery."""
        with self._postgres:
            self._kill_postgres()
            time.sleep(away_s)
            self._start(valkey=False)

    def back_up(self) -> None:
        """Take a base backup of the running cluster: what the next restore goes back to."""
        with self._postgres:
            account = account_for(self._data_dir, [Postgres.program()])
            account.make_dir(self._backups_dir)
            self._taken += 1
            target = self._backups_dir / str(self._taken)
            where = ["-h", str(sockets_dir_of(self._data_dir)), "-p", str(PORT), "-U", SUPERUSER]
            options = ["-D", str(target), "-X", "stream", "-c", "fast"]
            account.run([Postgres.program().with_name("pg_basebackup"), *where, *options], self._data_dir)
            before, self._backup = self._backup, target
        if before is not None:
            shutil.rmtree(before)

    def restore(self) -> None:
        """Kill Postgres, put the last backup in the place of its data, and start it: all that came later is forgotten."""
        if self._backup is None:
            raise StoreError("there is no backup to restore")
        with self._postgres:
            self._kill_postgres()
            self.restores += 1
            cluster = self._data_dir / "postgres"
            shutil.rmtree(cluster)
            shutil.copytree(self._backup, cluster, symlinks=True)
            account = account_for(self._data_dir, [Postgres.program()])
            for path in (cluster, *cluster.rglob("*")):
                account.own(path)
            self._start(valkey=False)

    def processes(self) -> dict[str, list[int]]:
        """The servers' processes, by name; Postgres's are many."""
        found: dict[str, list[int]] = {}
        with suppress(OSError):
            pid = valkey_pid(self._data_dir)
            found["Valkey"] = [] if pid is None else [pid]
            pid = postgres_pid(self._data_dir)
            found["Postgres, largest process"] = [] if pid is None else [pid, *_children(pid)]
        return found

    def _kill_postgres(self) -> None:
        _kill(postgres_pid(self._data_dir), self._data_dir / "postgres.lock")

    def _start(self, *, postgres: bool = True, valkey: bool = True) -> None:
        """Start one of the two, and never the other: its files may just be on their way."""
        # Inside another running(), which goes on answering for both.
        with running(self._data_dir, postgres=postgres, valkey=valkey):
            pass


def _kill(pid: int | None, lock_path: Path) -> None:
    """SIGKILL, and wait until the last process of the server is gone."""
    if pid is None:
        raise StoreError("the server to be killed doesn't run")
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + GONE_LIMIT_S
    with opened(lock_path) as lock:
        while not try_exclusive(lock):
            if time.monotonic() > deadline_s:
                raise StoreError(f"a killed server's processes still hold {lock_path.name}")
            time.sleep(POLL_EVERY_S)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]

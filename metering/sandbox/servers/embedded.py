"""The embedded servers of a data directory: started, joined and stopped by any number of processes.

Everything is decided under `<data dir>/lock`. Whoever uses the servers holds `users` shared; who is also
answerable for their running holds `runners`. The kernel gives locks back whatever ends a process: the dead don't
count.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from metering.sandbox.servers.account import account_for
from metering.sandbox.servers.daemon import Daemon
from metering.sandbox.servers.locks import EXCLUSIVE, SHARED, locked, try_exclusive
from metering.sandbox.servers.postgres import APPLICATION_ROLE, DATABASE, OWNER_ROLE, SUPERUSER, Postgres
from metering.sandbox.servers.sockets import sockets_dir_of
from metering.sandbox.servers.valkey import Valkey

STOP_WANTED = "stop-wanted"


@dataclass(frozen=True)
class Servers:
    """What runs under `data_dir`, as URLs: SQLAlchemy's for Postgres, redis-py's for Valkey."""

    data_dir: Path
    owner_database_url: str
    """The database as its owner, for migrations."""
    database_url: str
    """The same as the application's role, which the first migration makes."""
    admin_database_url: str
    """The database `postgres` as superuser: tests make databases with it."""
    redis_url: str


class NothingRuns(Exception):  # noqa: N818 - it is an answer as well: a command may start what is missing
    """Nobody has started the servers that a command wants to join."""

    def __init__(self, data_dir: Path, what: str = "Nothing") -> None:
        super().__init__(
            f"{what} runs under {data_dir}: start it with `metering up`, "
            "or set METERING_DATABASE_URL and METERING_REDIS_URL."
        )


@contextmanager
def running(data_dir: Path, *, postgres: bool = True, valkey: bool = True) -> Iterator[Servers]:
    """The servers asked for, started if they don't run; who leaves last stops them.

    Inside another running() it brings back a server that was killed. Raises ServerError (a sentence with the
    remedy, or the end of the server's log).
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(data_dir / "users", SHARED) as users, locked(data_dir / "runners", SHARED) as runners:
        try:
            with locked(data_dir / "lock", EXCLUSIVE):
                (data_dir / STOP_WANTED).unlink(missing_ok=True)
                account = account_for(data_dir, [Postgres.program()] * postgres + [Valkey.program()] * valkey)
                account.make_dir(sockets_dir_of(data_dir))
                for daemon in _wanted(data_dir, postgres, valkey):
                    daemon.start(account)
            yield _servers(data_dir)
        finally:
            with locked(data_dir / "lock", EXCLUSIVE):
                if try_exclusive(users):
                    _stop(data_dir)
                elif try_exclusive(runners):  # only joined() ones are left: the last of them sees to it
                    (data_dir / STOP_WANTED).touch()


@contextmanager
def joined(data_dir: Path, *, postgres: bool = True, valkey: bool = True) -> Iterator[Servers]:
    """The servers asked for, which run already; nobody stops them meanwhile. Raises NothingRuns.

    It leaves them running, also those of a starter that was killed. Only when every running() has left of its
    own while this was inside, the last to leave stops them in their stead.
    """
    data_dir = data_dir.resolve()
    if not (data_dir / "lock").exists():
        raise NothingRuns(data_dir)
    with locked(data_dir / "users", SHARED) as users:
        try:
            with locked(data_dir / "lock", EXCLUSIVE):  # waits for a start or a stop under way
                wanted = _wanted(data_dir, postgres, valkey)
                missing = [daemon.name for daemon in wanted if daemon.pid() is None]
            if missing:
                raise NothingRuns(data_dir, "Nothing" if len(missing) == len(wanted) else f"No {missing[0]}")
            yield _servers(data_dir)
        finally:
            with locked(data_dir / "lock", EXCLUSIVE):
                if (data_dir / STOP_WANTED).exists() and try_exclusive(users):
                    _stop(data_dir)


def postgres_pid(data_dir: Path) -> int | None:
    """The postmaster that listens for `data_dir`, which exists; None when none does."""
    return _both(data_dir.resolve())[0].pid()


def valkey_pid(data_dir: Path) -> int | None:
    """The Valkey that listens for `data_dir`, which exists; None when none does."""
    return _both(data_dir.resolve())[1].pid()


def _both(data_dir: Path) -> tuple[Postgres, Valkey]:
    sockets_dir = sockets_dir_of(data_dir)
    return Postgres(data_dir, sockets_dir), Valkey(data_dir, sockets_dir)


def _wanted(data_dir: Path, postgres: bool, valkey: bool) -> list[Daemon]:
    return [daemon for daemon, wanted in zip(_both(data_dir), (postgres, valkey), strict=True) if wanted]


def _stop(data_dir: Path) -> None:
    with ExitStack() as stops:  # the second is stopped even if the first refuses
        for daemon in _both(data_dir):
            stops.callback(daemon.stop)
    (data_dir / STOP_WANTED).unlink(missing_ok=True)


def _servers(data_dir: Path) -> Servers:
    postgres, valkey = _both(data_dir)
    return Servers(
        data_dir=data_dir,
        owner_database_url=postgres.url(OWNER_ROLE, DATABASE),
        database_url=postgres.url(APPLICATION_ROLE, DATABASE),
        admin_database_url=postgres.url(SUPERUSER, "postgres"),
        redis_url=valkey.url(),
    )

"""Two embedded Valkeys, one the replica of the other, which can change places while clients stay connected."""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.connection import parse_url

from metering.sandbox.servers.account import ServerError
from metering.sandbox.servers.embedded import running

HOST: Final = "127.0.0.1"
SYNC_LIMIT_S: Final = 30.0
POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Server:
    """One of the two."""

    socket_path: Path
    port: int
    client: redis.Redis
    """An operator's: it stays with this server whatever that is."""

    @property
    def url(self) -> str:
        """A URL for redis-py."""
        return f"unix://{self.socket_path}?db=0"

    def replication(self) -> dict[str, Any]:
        """What it says of its replication."""
        found: Any = self.client.info("replication")
        return dict(found)

    def connections(self, name: str) -> int:
        """How many clients of this name are connected."""
        found: Any = self.client.client_list()
        return sum(each["name"] == name for each in found)


class ReplicatedValkey:
    """A primary and its replica, in sync, for the time of a with block."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.primary, self.replica = (self._start(stack, name) for name in ("first", "second"))
            self.replica.client.replicaof(HOST, str(self.primary.port))
            self.wait_for_sync()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def demote(self) -> None:
        """Let the two change places, as an operator does who plans it: nothing that was written is lost, nobody is cut off."""
        old, new = self.primary, self.replica
        self.wait_for_sync()
        old.client.client_pause(int(SYNC_LIMIT_S * 1_000), all=False)  # writes only
        try:
            written = old.replication()["master_repl_offset"]
            _wait(lambda: new.replication()["slave_repl_offset"] >= written, "the replica's catching up")
            new.client.replicaof("NO", "ONE")
            old.client.replicaof(HOST, str(new.port))
        finally:
            old.client.client_unpause()
        self.primary, self.replica = new, old

    def wait_for_sync(self) -> None:
        """Return once the replica has all that there is: before, it must not be promoted."""
        _wait(lambda: self.replica.replication().get("master_link_status") == "up", "the replica's sync")

    def _start(self, stack: ExitStack, name: str) -> Server:
        servers = stack.enter_context(running(self._data_dir / name, postgres=False))
        client = stack.enter_context(redis.Redis.from_url(servers.redis_url))
        port = _free_port()
        client.config_set("port", port)  # replicas know TCP only
        client.config_set("repl-diskless-sync-delay", 0)
        return Server(Path(parse_url(servers.redis_url)["path"]), port, client)  # type: ignore[no-untyped-call]


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def _wait(true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + SYNC_LIMIT_S
    while not true():
        if time.monotonic() > deadline_s:
            raise ServerError(f"Valkey: {what} took longer than {SYNC_LIMIT_S:.0f} s.")
        time.sleep(POLL_S)

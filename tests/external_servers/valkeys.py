"""Valkey or Redis on TCP: one, one with replicas, and Sentinels that watch over them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from metering.sandbox.servers.valkey import Valkey
from tests.external_servers.process import HOST, Process, free_port
from tests.waiting import wait_until

NAME: Final = "calls"
"""What the Sentinels call the primary."""
SETTINGS: Final = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}
LIMIT_S: Final = 60.0
"""How long replication, or the Sentinels' agreement, may take on a busy machine."""


class TcpServer(Process):
    """One server. `client` is an operator's: it stays with this server whatever that is."""

    def __init__(
        self, directory: Path, settings: Mapping[str, str] | None = None, program: Path | None = None
    ) -> None:
        self.port = free_port()
        directory.mkdir(parents=True)
        said = {**SETTINGS, "port": str(self.port), "bind": HOST, **(settings or {})}
        (directory / "server.conf").write_text("".join(f"{name} {value}\n" for name, value in said.items()))
        self.client = redis.Redis(HOST, self.port, socket_timeout=5)
        super().__init__(directory, [program or Valkey.program(), "server.conf"], self.answers)

    def answers(self) -> bool:
        """Whether it answers; an error is an answer, but not while it loads its data."""
        try:
            self.client.ping()
        except redis.exceptions.BusyLoadingError:
            return False
        except (redis.AuthenticationError, redis.ResponseError):
            return True
        except redis.RedisError:
            return False
        return True

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def stop(self) -> None:
        self.client.close()
        super().stop()


class Sentinel(Process):
    """One of those who watch."""

    def __init__(
        self,
        directory: Path,
        primary_port: int,
        down_after_ms: int,
        extra: str = "",
        program: Path | None = None,
    ) -> None:
        self.port = free_port()
        directory.mkdir(parents=True)
        (directory / "sentinel.conf").write_text(
            f"port {self.port}\nbind {HOST}\n{extra}"
            f"sentinel monitor {NAME} {HOST} {primary_port} 2\n"
            f"sentinel down-after-milliseconds {NAME} {down_after_ms}\n"
            f"sentinel failover-timeout {NAME} 10000\n"
        )
        self.client = redis.Redis(HOST, self.port, socket_timeout=5)
        super().__init__(
            directory, [program or Valkey.program(), "sentinel.conf", "--sentinel"], self.answers
        )

    def answers(self) -> bool:
        try:
            self.client.ping()
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
        return True

    def knows_all(self, others: int, replicas: int) -> bool:
        """Whether it has found the other Sentinels and the replicas: before, nothing can fail over."""
        about: Any = self.client.sentinel_master(NAME)
        return bool(about["num-other-sentinels"] >= others and about["num-slaves"] >= replicas)

    def stop(self) -> None:
        self.client.close()
        super().stop()


class Watched:
    """A primary, a replica, and three Sentinels."""

    def __init__(self, servers: list[TcpServer], sentinels: list[Sentinel]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}/0"

    def primary(self) -> TcpServer:
        """As most of the Sentinels have it."""
        said: list[Any] = [each.client.sentinel_master(NAME) for each in self.sentinels]
        ports = [each["port"] for each in said]
        port = max(set(ports), key=ports.count)
        return next(each for each in self.servers if each.port == port)

    def fail_over(self) -> TcpServer:
        """Kill the primary, wait until the Sentinels have promoted the other one; give the killed one, which stays away."""
        old = self.primary()
        old.kill()
        wait_until(lambda: self.primary() is not old and writes(self.primary()), limit_s=LIMIT_S)
        return old

    def switch_over(self) -> None:
        """As an operator has the Sentinels do it, with everybody alive: the old one hands over, so that nothing is lost."""
        old = self.primary()
        self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", NAME, "COORDINATED")  # type: ignore[no-untyped-call]
        wait_until(lambda: self.primary() is not old and writes(self.primary()), limit_s=LIMIT_S)


def writes(server: TcpServer) -> bool:
    """Whether it is a primary."""
    return bool(replication(server)["role"] == "master")


def replication(server: TcpServer) -> dict[str, Any]:
    """What it says of its replication."""
    found: Any = server.client.info("replication")
    return dict(found)


@contextmanager
def replicated(
    directory: Path, settings: Mapping[str, str] | None = None, program: Path | None = None
) -> Iterator[list[TcpServer]]:
    """A primary and its replica, in sync."""
    with ExitStack() as stack:
        servers = []
        for name in ("a", "b"):
            server = TcpServer(directory / name, settings, program)
            stack.callback(server.stop)
            server.start()
            servers.append(server)
        primary, replica = servers
        replica.client.replicaof(HOST, str(primary.port))
        wait_until(lambda: replication(replica).get("master_link_status") == "up", limit_s=LIMIT_S)
        yield servers


@contextmanager
def watched(
    directory: Path, settings: Mapping[str, str] | None = None, down_after_ms: int = 2_000
) -> Iterator[Watched]:
    """The same with Sentinels, which know each other and the replica."""
    with replicated(directory, settings) as servers, ExitStack() as stack:
        sentinels = []
        for number in range(3):
            sentinel = Sentinel(directory / f"sentinel{number}", servers[0].port, down_after_ms)
            stack.callback(sentinel.stop)
            sentinel.start()
            sentinels.append(sentinel)
        for each in sentinels:
            wait_until(lambda each=each: each.knows_all(2, 1), limit_s=LIMIT_S)  # type: ignore[misc]
        yield Watched(servers, sentinels)

"""What a fail-over of Valkey loses of confirmed events, because it replicates after it has answered.

Run: python -m tests.benchmarks.failover_losses [--seconds 6] [--rate 2000]

Events are pushed by `metering.client`, 20 at a time, at a fixed rate, while the primary fails in one of two ways:

- killed: by SIGKILL, as where its machine dies. The Sentinels promote the replica.
- cut off: its replica and the Sentinels can't reach it any more, those who push still can. Sentinel promotes the replica; when
  the network is whole again, they make the old primary follow the new one, which throws away what it took alone.

Lost is what was confirmed and isn't in the stream of the new primary. The numbers stand in docs/how-to/servers.md.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metering.client import MeteringClient, TelephonyError
from metering.trials.chaos.links import Links
from tests.external_servers.process import HOST
from tests.external_servers.valkeys import LIMIT_S, NAME, Sentinel, TcpServer, replication, writes
from tests.waiting import wait_until

BATCH: Final = 20
LINK: Final = "primary"
DOWN_AFTER_MS: Final = 2_000


@dataclass(frozen=True)
class Way:
    """How the server and the client are set."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    replicas: int = 0


WAYS: Final = (
    Way("as Valkey comes"),
    Way("min-replicas-to-write 1, max-lag 1", {"min-replicas-to-write": "1", "min-replicas-max-lag": "1"}),
    Way("WAIT: MeteringClient(replicas=1)", replicas=1),
    Way("both", {"min-replicas-to-write": "1", "min-replicas-max-lag": "1"}, 1),
)


@dataclass
class Pusher:
    """Pushes at a fixed rate, and remembers what was confirmed. One that fails is not tried again: it isn't confirmed."""

    client: MeteringClient
    rate: int
    confirmed: list[int] = field(default_factory=list)
    refused: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        due_s, call_id = time.monotonic(), 1
        while not self.stop.is_set():
            calls = range(call_id, call_id + BATCH)
            call_id += BATCH
            try:
                self.client.push_many(_event(number) for number in calls)
                self.confirmed += calls
            except TelephonyError as error:
                self.confirmed += calls[: error.pushed]
                self.refused += BATCH - error.pushed
            due_s = max(due_s + BATCH / self.rate, time.monotonic() - 1)
            self.stop.wait(max(due_s - time.monotonic(), 0))


def _event(call_id: int) -> dict[str, object]:
    return {
        "call_id": call_id,
        "org_id": 1,
        "tier": "bolt",
        "direction": "outbound",
        "duration_seconds": 75,
        "ended_at": "2026-11-28T12:00:00Z",
    }


@contextmanager
def _cluster(directory: Path, way: Way) -> Iterator[tuple[TcpServer, TcpServer, Links]]:
    """A primary; its replica and three Sentinels, which see it through a link."""
    with ExitStack() as stack:
        servers = [TcpServer(directory / name, way.settings) for name in ("a", "b")]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        primary, replica = servers
        links = stack.enter_context(Links())
        port = links.add(LINK, (HOST, primary.port))
        replica.client.replicaof(HOST, str(port))
        wait_until(lambda: replication(replica).get("master_link_status") == "up", limit_s=LIMIT_S)
        sentinels = [Sentinel(directory / f"s{number}", port, DOWN_AFTER_MS) for number in range(3)]
        for sentinel in sentinels:
            stack.callback(sentinel.stop)
            sentinel.start()
        for sentinel in sentinels:
            wait_until(lambda each=sentinel: each.knows_all(2, 1), limit_s=LIMIT_S)  # type: ignore[misc]
        yield primary, replica, links


def lost(
    directory: Path, way: Way, *, cut_off: bool, rate: int, seconds: float
) -> tuple[int, int, int, float]:
    """How many were confirmed, refused and lost, and how long it took until the replica was promoted."""
    with _cluster(directory, way) as (primary, replica, links):
        client = MeteringClient(primary.url, timeout_s=1.0, tries=1, replicas=way.replicas)
        pusher = Pusher(client, rate)
        thread = threading.Thread(target=pusher.run)
        thread.start()
        time.sleep(seconds / 2)
        began_s = time.monotonic()
        if cut_off:
            links.stall(LINK)
        else:
            primary.kill()
        wait_until(lambda: writes(replica), limit_s=LIMIT_S)
        took_s = time.monotonic() - began_s
        if cut_off:
            time.sleep(seconds / 2)  # the network stays as it is for a while more
        pusher.stop.set()
        thread.join()
        client.close()
        there = _call_ids(replica)
        return len(pusher.confirmed), pusher.refused, len(set(pusher.confirmed) - there), took_s


def _call_ids(server: TcpServer) -> set[int]:
    found: Any = server.client.xrange("calls:completed")
    return {int(fields[b"event"].split(b'"call_id":')[1].split(b",")[0]) for _, fields in found}


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command's output


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rate", type=int, default=2_000)
    given = parser.parse_args()
    _say(
        f"{given.rate} pushes a second; Sentinel's down-after-milliseconds {DOWN_AFTER_MS}; primary called {NAME}"
    )
    _say(f"{'primary is':10} {'set':36} {'confirmed':>9} {'refused':>8} {'lost':>6} {'promoted after s':>16}")
    for cut_off in (False, True):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as directory:
                confirmed, refused, gone, took_s = lost(
                    Path(directory) / "servers", way, cut_off=cut_off, rate=given.rate, seconds=given.seconds
                )
            how = "cut off" if cut_off else "killed"
            _say(f"{how:10} {way.name:36} {confirmed:9} {refused:8} {gone:6} {took_s:16.1f}")


if __name__ == "__main__":
    main()

"""Open-loop load: events that are pushed when their time has come, however things go.

`python -m metering.trials.bench.generate` is the generator, a process of its own beside what it loads. An event's latency
counts from its scheduled time, so that a stall is counted for every event that was due while it lasted (no coordinated omission).
"""

import json
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import hiredis
import redis
from redis.connection import parse_url

from metering.runtime.names import STREAM
from metering.runtime.redis_connection import TIMEOUT_S, connect_redis
from metering.trials.event_generator import Traffic, event, events

TICK_S: Final = 0.001
RECEIVED_AT_ONCE: Final = 65_536
LEAD_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What a generator is to push."""

    redis_url: str
    per_second: float
    count: int
    first_call_id: int
    orgs: int
    traffic: Traffic
    first_probe: int
    """Each probe is one event of an org of its own, from this one on, which costs 8 cents."""
    probe_every: int
    """One event in so many is a probe."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a generator has pushed."""

    started_at: float
    """Seconds since the epoch: event n was due n / rate later."""
    stream_ids: list[str]
    """Event by event."""
    latest_s: float
    """The most by which an event was pushed after its time."""
    backlog: int
    """Events in the stream when the last one had been pushed."""


def probes(order: LoadOrder) -> dict[int, int]:
    """By org: which event of the load is its probe."""
    return {
        order.first_probe + number: at
        for number, at in enumerate(range(order.probe_every // 2, order.count, order.probe_every))
    }


def generate(order: LoadOrder) -> Pushed:
    """Push the whole load, each event as soon as it is due, whether those before it were answered or not.

    It speaks to the socket itself: redis-py has no way not to wait for answers, and takes more of the processor, of which the
    meter beside it is robbed.
    """
    with connect_redis(order.redis_url) as client, _connected(order.redis_url) as connection:
        packing = client.connection_pool.get_connection()
        commands = [
            b"".join(packing.pack_command("XADD", STREAM, "*", "event", each)) for each in _load(order)
        ]
        answers: list[Any] = []
        reader = hiredis.Reader()
        sent, latest_s = 0, 0.0
        started_at = time.time() + LEAD_S
        while sent < len(commands):
            elapsed_s = time.time() - started_at
            due = min(max(int(elapsed_s * order.per_second) + 1, 0), len(commands))
            if elapsed_s >= 0 and due > sent:
                latest_s = max(latest_s, elapsed_s - sent / order.per_second)
                connection.sendall(b"".join(commands[sent:due]))
                sent = due
            else:
                time.sleep(TICK_S)
            if select.select([connection], [], [], 0)[0]:
                _receive(connection, reader, answers)
        while len(answers) < len(commands):
            _receive(connection, reader, answers)
        return Pushed(started_at, [_stream_id(each) for each in answers], latest_s, int(client.xlen(STREAM)))


def _connected(redis_url: str) -> socket.socket:
    """A socket to the embedded server."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    connection.connect(parse_url(redis_url)["path"])  # type: ignore[no-untyped-call]
    return connection


def _receive(connection: socket.socket, reader: hiredis.Reader, answers: list[Any]) -> None:
    """Take in what has come; wait for something."""
    data = connection.recv(RECEIVED_AT_ONCE)
    if not data:
        raise redis.ConnectionError("the server has closed the connection")
    reader.feed(data)
    while (answer := reader.gets()) is not False:
        answers.append(answer)


def _load(order: LoadOrder) -> Iterator[str]:
    at = {index: org_id for org_id, index in probes(order).items()}
    seed = order.first_call_id
    others = events(
        order.count, orgs=order.orgs, first_call_id=order.first_call_id, seed=seed, traffic=order.traffic
    )
    for index, other in enumerate(others):
        yield event(order.first_call_id + index, at[index], "outbound", 60) if index in at else other


def _stream_id(answer: Any) -> str:
    if not isinstance(answer, bytes):
        raise redis.RedisError(f"XADD answered {answer!r}")
    return answer.decode()


def order_words(order: LoadOrder, answer_path: Path) -> list[str]:
    """The command, for `python -m`, whose process pushes `order` and writes what it pushed to `answer_path`."""
    return ["metering.trials.bench.generate", json.dumps(asdict(order)), str(answer_path)]


def read_pushed(answer_path: Path) -> Pushed:
    """What a generator wrote."""
    return Pushed(**json.loads(answer_path.read_text()))


def main() -> None:
    """Push what the first argument says; write what was pushed to the second, a file."""
    words: dict[str, Any] = json.loads(sys.argv[1])
    order = LoadOrder(**words | {"traffic": Traffic(words["traffic"])})
    Path(sys.argv[2]).write_text(json.dumps(asdict(generate(order))))


if __name__ == "__main__":
    main()

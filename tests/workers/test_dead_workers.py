"""What dead workers had in hand at the broker goes back: dramatiq itself is the worker that died, and the one that takes it."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from dramatiq import Consumer, Message, MessageProxy
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis

from metering.runtime.names import JOBS
from tests.waiting import wait_until
from workers.broker import HEARTBEAT_TIMEOUT_MS, MONEY_QUEUE, make_broker
from workers.dead_workers import DEAD_LETTERS_KEPT_MS, DeadWorkers

DELAYED = f"{MONEY_QUEUE}.DQ"


@dataclass
class Bench:
    """A broker that looks after dead workers, with a clock that can be ahead of dramatiq's."""

    client: redis.Redis
    ahead_ms: int = 0
    broker: RedisBroker = field(init=False)

    def __post_init__(self) -> None:
        self.broker = make_broker(self.client)

    def clear(self) -> None:
        DeadWorkers(self.broker, lambda: current_millis() + self.ahead_ms).clear()

    def workers(self) -> set[str]:
        found: Any = self.client.zrange(JOBS.heartbeats, 0, -1)
        return {name.decode() for name in found}

    def send(self, number: int, *, delay_ms: int | None = None) -> None:
        self.broker.enqueue(message(number), delay=delay_ms)


@pytest.fixture
def bench(redis_client: redis.Redis) -> Bench:
    return Bench(redis_client)


def message(number: int) -> "Message[None]":
    return Message(queue_name=MONEY_QUEUE, actor_name="charge", args=(number,), kwargs={}, options={})


def take(broker: RedisBroker, queue: str = MONEY_QUEUE) -> tuple[Consumer, list[MessageProxy]]:
    """Take what waits in a queue as dramatiq's worker does, and leave it unacknowledged."""
    consumer = broker.consume(queue, prefetch=10, timeout=1)
    found = []
    while (each := next(consumer)) is not None:
        found.append(each)
    return consumer, found


def taken(broker: RedisBroker, queue: str = MONEY_QUEUE) -> list[int]:
    """The numbers of what waited in a queue, and is taken now."""
    return [each.args[0] for each in take(broker, queue)[1]]


@pytest.mark.parametrize("queue", [MONEY_QUEUE, DELAYED])
def test_a_dead_workers_messages_go_to_another_and_it_is_forgotten(bench: Bench, queue: str) -> None:
    for number in (1, 2):
        bench.send(number, delay_ms=60_000 if queue == DELAYED else None)
    died, other = make_broker(bench.client), make_broker(bench.client)
    assert taken(died, queue) == [1, 2]
    assert died.broker_id in bench.workers()
    bench.ahead_ms = HEARTBEAT_TIMEOUT_MS + 1_000
    bench.clear()
    assert bench.workers() == set()
    assert bench.client.keys(f"{JOBS.namespace}:__acks__*") == []
    assert sorted(taken(other, queue)) == [1, 2]
    assert taken(other, queue) == []  # once


def test_who_was_heard_of_keeps_what_it_has(bench: Bench) -> None:
    bench.send(1)
    lives, other = make_broker(bench.client), make_broker(bench.client)
    assert taken(lives) == [1]
    bench.ahead_ms = HEARTBEAT_TIMEOUT_MS - 2_000
    bench.clear()
    assert lives.broker_id in bench.workers()
    assert taken(other) == []


def test_who_is_heard_of_after_all_keeps_what_it_has(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counted as dead when the list was read, and said something before its turn came."""
    bench.send(1)
    slow, other = make_broker(bench.client), make_broker(bench.client)
    assert taken(slow) == [1]
    bench.ahead_ms = HEARTBEAT_TIMEOUT_MS + 1_000
    listed = bench.client.zrangebyscore(JOBS.heartbeats, 0, "+inf")
    bench.client.zadd(JOBS.heartbeats, {slow.broker_id: current_millis() + 5_000})
    monkeypatch.setattr(
        bench.client, "zrangebyscore", lambda name, *_, **__: listed if name == JOBS.heartbeats else []
    )
    bench.clear()
    assert slow.broker_id in bench.workers()
    assert taken(other) == []


def test_what_was_acknowledged_does_not_come_back(bench: Bench) -> None:
    bench.send(1)
    died = make_broker(bench.client)
    consumer, (done,) = take(died)
    consumer.ack(done)
    bench.ahead_ms = HEARTBEAT_TIMEOUT_MS + 1_000
    bench.clear()
    assert taken(make_broker(bench.client)) == []


def test_dead_letters_are_kept_for_a_week(bench: Bench) -> None:
    letters = f"{JOBS.namespace}:{MONEY_QUEUE}.XQ"
    for number, age_ms in ((1, DEAD_LETTERS_KEPT_MS + 60_000), (2, DEAD_LETTERS_KEPT_MS - 60_000)):
        bench.send(number)
        consumer, (given_up,) = take(bench.broker)
        consumer.nack(given_up)
        written = bench.client.zadd(
            letters, {given_up.options["redis_message_id"]: current_millis() - age_ms}, xx=True, ch=True
        )
        assert written == 1
    bench.clear()
    assert bench.client.zcard(letters) == 1
    (kept,) = bench.client.hvals(f"{letters}.msgs")
    assert isinstance(kept, bytes)
    assert Message.decode(kept).args == (2,)


def test_nobody_lets_dramatiq_look_for_dead_workers(bench: Bench) -> None:
    """It would send KEYS, which holds up everybody: on a server with many gates for longer than a call may wait."""
    bench.client.zadd(JOBS.heartbeats, {"dead": 1})
    bench.client.config_resetstat()
    for number in range(300):
        bench.send(number)
        bench.broker.do_fetch(MONEY_QUEUE, 1)
    bench.clear()
    commands = bench.client.info("commandstats")
    assert commands["cmdstat_hset"]["calls"] >= 300
    assert not {"cmdstat_keys", "cmdstat_scan"} & commands.keys()


WORKER = """
import os, sys, threading
import dramatiq
from metering.runtime.redis_connection import connect_redis
from workers.broker import MONEY_QUEUE, make_broker, make_worker
from workers.dead_workers import DeadWorkers

client = connect_redis(os.environ["METERING_REDIS_URL"])
broker = make_broker(client)

@dramatiq.actor(broker=broker, queue_name=MONEY_QUEUE)
def charge(attempt):
    client.rpush("seen", sys.argv[1])
    if sys.argv[1] == "dies":
        threading.Event().wait()

if sys.argv[1] == "dies":
    charge.send(1)
worker = make_worker(broker)
worker.start()
DeadWorkers(broker).task().run(threading.Event())
"""


@pytest.mark.long
def test_a_killed_workers_message_goes_to_another(redis_client: redis.Redis, redis_url: str) -> None:
    def worker(name: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, name], env=os.environ | {"METERING_REDIS_URL": redis_url}
        )

    first = worker("dies")
    try:
        wait_until(lambda: redis_client.llen("seen") == 1, limit_s=20)
    finally:
        first.kill()
        first.wait()
    second = worker("lives")
    try:
        wait_until(lambda: redis_client.lrange("seen", 0, -1) == [b"dies", b"lives"], limit_s=60)
    finally:
        second.kill()
        second.wait()

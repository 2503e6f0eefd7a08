"""One dramatiq message per call, as most would build it: `python -m metering.trials.bench.dramatiq_baseline` is its worker.

The same ledger code, the same gates, the same Valkey; one transaction and one call of Redis for each message.
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import dramatiq
import redis
from dramatiq import Message, Worker
from dramatiq.brokers.redis import RedisBroker
from sqlalchemy import Engine

from db.ledger.post_calls import post_calls
from db.ledger.price_book import load_price_book
from db.postgres.engine import make_engine, transaction
from metering.runtime.clock import system_clock
from metering.runtime.names import BENCH_JOBS
from metering.runtime.redis_connection import connect_redis
from metering.runtime.settings import read_settings
from metering.sandbox.servers.embedded import joined
from metering.signals.gates import Gates
from metering.trials.bench.fixture import Fixture
from metering.trials.bench.rate import Rate
from metering.trials.bench.roles import running_roles
from workers.batch import parse_entries, price_entries
from workers.stream import Entry

QUEUE: Final = "calls"
ACTOR: Final = "bill_call"
THREADS: Final = 8
"""dramatiq's own default; more wait for each other's turn in Python."""
POLL_EVERY_S: Final = 0.01


def measure_one_message_per_call(
    fixture: Fixture, load: Iterator[str], report: Callable[[int], None]
) -> Rate:
    """From a filled queue to the last ack, by one worker process; time counts from when the first messages are done."""
    broker = _broker(fixture.client)
    filled = 0
    for event in load:
        filled += 1
        message: Message[Any] = Message(
            queue_name=QUEUE, actor_name=ACTOR, args=(event,), kwargs={}, options={}
        )
        broker.enqueue(message)
    messages = BENCH_JOBS.messages(QUEUE)
    with running_roles(fixture.servers.data_dir, [["metering.trials.bench.dramatiq_baseline"]]) as (worker,):
        left, started_s, counted = filled, 0.0, 0
        while left:
            time.sleep(POLL_EVERY_S)
            worker.require_running()
            now_left = int(fixture.client.hlen(messages))
            report(left - now_left)
            left = now_left
            if not started_s and left < filled:
                started_s, counted = time.monotonic(), left
        return Rate(counted, time.monotonic() - started_s)


def _broker(client: redis.Redis) -> RedisBroker:
    broker = RedisBroker(client=client, namespace=BENCH_JOBS.namespace)  # type: ignore[no-untyped-call]
    broker.declare_queue(QUEUE)
    return broker


def _declare_actor(broker: RedisBroker, engine: Engine, gates: Gates) -> None:
    with transaction(engine) as connection:
        book = load_price_book(connection)

    @dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name=ACTOR)
    def bill_call(event: str) -> None:
        parsed = parse_entries([Entry("0-0", event.encode())])
        priced = price_entries(parsed, book)
        with transaction(engine) as connection:
            posted = post_calls(connection, priced.calls, priced.rejected, price_book_version=book.version)
        gates.follow([each.balance for each in posted.changes.values()], system_clock())


def main() -> None:
    """Work until standard input ends."""
    with joined(read_settings().data_dir) as servers, connect_redis(servers.redis_url) as client:
        engine = make_engine(servers.database_url, application_name="metering bench", pool_size=THREADS)
        broker = _broker(client)
        _declare_actor(broker, engine, Gates(client))
        worker = Worker(broker, worker_threads=THREADS)
        worker.start()
        sys.stdin.read()
        worker.stop()
        engine.dispose()


if __name__ == "__main__":
    main()

"""The dramatiq broker: what must be done at Stripe, and tried again, goes through it. Never the only record of anything."""

from typing import Final

import redis
from dramatiq import Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Callbacks, Pipelines, Retries, ShutdownNotifications, TimeLimit

from metering.runtime.names import JOBS
from workers.log_context import LogContext

MONEY_QUEUE: Final = "money"
"""Charges and what settles them."""

NO_MAINTENANCE: Final = 0
"""Of 1,000,000 calls to Redis, how many make dramatiq look for dead workers, by KEYS: none. workers/dead_workers.py does it."""
HEARTBEAT_TIMEOUT_MS: Final = 10_000
"""A worker that hasn't been heard of for so long is dead, and its messages go to another."""

MAX_RETRIES: Final = 10
MIN_BACKOFF_MS: Final = 1_000
MAX_BACKOFF_MS: Final = 5 * 60_000
TIME_LIMIT_MS: Final = 30 * 60_000
"""Far out: it raises in the middle of anything, a commit included. Statements, locks and Stripe have time-outs of their own."""

WORKER_THREADS: Final = 16
"""Each waits for Stripe nearly all of its time. With the reconciler's they stay below the connections that there are to
Stripe."""
WORKER_TIMEOUT_MS: Final = 500


def make_broker(client: redis.Redis) -> RedisBroker:
    """A broker on `client`, with its queues declared. Retry options are the same for every actor unless it says otherwise."""
    broker = RedisBroker(  # type: ignore[no-untyped-call]
        client=client,
        namespace=JOBS.namespace,
        maintenance_chance=NO_MAINTENANCE,
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        middleware=[
            LogContext(),
            AgeLimit(),
            TimeLimit(time_limit=TIME_LIMIT_MS),
            ShutdownNotifications(),
            Callbacks(),
            Pipelines(),
            Retries(max_retries=MAX_RETRIES, min_backoff=MIN_BACKOFF_MS, max_backoff=MAX_BACKOFF_MS),
        ],
    )
    broker.declare_queue(MONEY_QUEUE)
    return broker


def make_worker(broker: RedisBroker) -> Worker:
    """A worker in this process for every queue of `broker`."""
    return Worker(broker, worker_threads=WORKER_THREADS, worker_timeout=WORKER_TIMEOUT_MS)

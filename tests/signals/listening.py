"""What the tests of gates share: reading gates and the signals that were said."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from sqlalchemy import Engine

from db.ledger.adjustments import Adjusted, adjust
from db.postgres.engine import transaction
from metering.runtime.clock import Clock, system_clock
from metering.runtime.names import SIGNALS_CHANNEL, SIGNALS_LOG
from metering.signals.gates import Gates

EXHAUSTED, RESTORED = "balance.exhausted", "balance.restored"
SUSPENDED, RESUMED = "org.suspended", "org.resumed"


def signals_log(client: redis.Redis) -> list[dict[str, Any]]:
    """Every signal in the log, oldest first."""
    entries: Any = client.xrange(SIGNALS_LOG)
    return [json.loads(fields[b"signal"]) for _, fields in entries]


def said_of(client: redis.Redis, org_id: int) -> list[str]:
    """The types of an org's signals, oldest first."""
    return [signal["type"] for signal in signals_log(client) if signal["org_id"] == org_id]


def gate(client: redis.Redis, org_id: int) -> dict[str, str]:
    """An org's gate as anybody reads it."""
    held: Any = client.hgetall(f"gate:{org_id}")
    return {name.decode(): value.decode() for name, value in held.items()}


@contextmanager
def listening(client: redis.Redis) -> Iterator["redis.client.PubSub"]:
    """A listener on the channel, surely subscribed."""
    with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe(SIGNALS_CHANNEL)
        assert pubsub.get_message(timeout=5) is not None
        yield pubsub


def adjust_and_tell(
    engine: Engine, client: redis.Redis, org_id: int, amount_cents: int, key: str, clock: Clock = system_clock
) -> Adjusted:
    """Adjust, and let the gate follow after the commit, as the command does."""
    with transaction(engine) as connection:
        done = adjust(connection, org_id, amount_cents=amount_cents, reason="test", key=key)
    if done.change is not None:
        Gates(client).follow([done.change.balance], clock())
    return done

"""The actor that charges auto-reloads. Its message is only a hint: everything that counts stands in the attempt's row."""

from typing import Final
from uuid import UUID

import dramatiq
from dramatiq import Broker

from metering.payments.charges import process_attempt
from metering.payments.context import Payments
from metering.runtime.crashpoints import CrashPoint, reach
from workers.broker import MONEY_QUEUE, TIME_LIMIT_MS
from workers.enqueue import AUTO_RELOAD_ACTOR

MAX_RETRIES: Final = 3
"""Only Postgres can fail here: what Stripe leaves undecided is looked at again when the row says. After these, by the
reconciler."""
MIN_BACKOFF_MS: Final = 1_000
MAX_BACKOFF_MS: Final = 10_000


def declare_auto_reload(broker: Broker, payments: Payments) -> None:
    """Have `broker`'s workers charge the attempts that are enqueued for them."""

    @dramatiq.actor(
        broker=broker,
        actor_name=AUTO_RELOAD_ACTOR,
        queue_name=MONEY_QUEUE,
        max_retries=MAX_RETRIES,
        min_backoff=MIN_BACKOFF_MS,
        max_backoff=MAX_BACKOFF_MS,
        time_limit=TIME_LIMIT_MS,
    )
    def charge(org_id: int, attempt_id: str) -> None:
        process_attempt(payments, org_id, UUID(attempt_id))
        reach(CrashPoint.CHARGE_BEFORE_ACK)

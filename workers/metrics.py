"""What the meter and the jobs tell Prometheus (docs/reference/metrics.md). Base units, and no org ever as a label."""

from collections import Counter as Tally
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import redis
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from db.ledger.post_calls import Posted
from metering.runtime.role_metrics import UNKNOWN
from workers.stream import backlog

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)

EVENTS: Final = Counter(
    "metering_events", "Stream entries acknowledged, by outcome; rejected ones are dead letters.", ["outcome"]
)
DEBITED_CENTS: Final = Counter("metering_debited_cents", "Cents debited for calls.", ["tier", "direction"])
BILLED_SECONDS: Final = Counter("metering_billed_seconds", "Billable seconds of calls debited.", ["tier"])
BATCH_SECONDS: Final = Histogram(
    "metering_batch_seconds", "How long a meter has a batch: from its arrival to its ack.", buckets=_SECONDS
)
BATCH_EVENTS: Final = Histogram(
    "metering_batch_events",
    "Stream entries per batch.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 4_000),
)
EVENT_TO_COMMIT_SECONDS: Final = Histogram(
    "metering_event_to_commit_seconds",
    "From an event's arrival in the stream to the commit of its effect; the oldest event of each batch.",
    buckets=_SECONDS,
)
COMMIT_TO_SIGNAL_SECONDS: Final = Histogram(
    "metering_commit_to_signal_seconds",
    "From a batch's commit to its gates and signals in Redis.",
    buckets=_SECONDS,
)
GATES_EXHAUSTED: Final = Gauge(
    "metering_gates_exhausted",
    "Orgs whose gate is closed because their balance is used up, as of the last reconciliation.",
)
GATES_EXHAUSTED.set(UNKNOWN)
GATES_SUSPENDED: Final = Gauge(
    "metering_gates_suspended",
    "Orgs whose gate an operator has closed, whatever their balance, as of the last reconciliation.",
)
GATES_SUSPENDED.set(UNKNOWN)
ORGS: Final = Gauge("metering_orgs", "Orgs that there are, as of the last reconciliation.")
ORGS.set(UNKNOWN)
BALANCES_CENTS: Final = Gauge(
    "metering_balances_cents",
    "The sum of all balances above 0 (positive) and of all below (negative), as of the last reconciliation.",
    ["sign"],
)
GATES_MENDED: Final = Counter(
    "metering_gates_mended", "Gates that the reconciler found wrong and repaired or closed."
)
HOLDS_OPEN: Final = Gauge("metering_holds_open", "Holds of calls that run, as of the last look of the jobs.")
HOLDS_OPEN.set(UNKNOWN)
HOLDS_LAPSED: Final = Gauge(
    "metering_holds_lapsed",
    "Lapsed holds, which still count: their calls' events are late, lost or rejected. As of the last look of the jobs.",
)
HOLDS_LAPSED.set(UNKNOWN)
HELD_CENTS: Final = Gauge(
    "metering_held_cents", "What all holds keep back together, as of the last look of the jobs."
)
HELD_CENTS.set(UNKNOWN)
RECONCILIATION_SECONDS: Final = Histogram(
    "metering_sweep_seconds", "How long a reconciliation of all gates took.", buckets=_SECONDS
)

for _outcome in ("debited", "unbilled", "duplicate", "rejected"):
    EVENTS.labels(_outcome)  # there from the start, so that a rate over its first rise is right


def count_posted(posted: Posted) -> None:
    """Count what became of a batch."""
    EVENTS.labels("debited").inc(len(posted.debits))
    EVENTS.labels("unbilled").inc(posted.unbilled)
    EVENTS.labels("duplicate").inc(posted.duplicates)
    EVENTS.labels("rejected").inc(len(posted.rejected))
    cents: Tally[tuple[str, str]] = Tally()
    seconds: Tally[str] = Tally()
    for call in posted.debits:
        if call.charge is not None:
            cents[call.event.tier, call.event.direction] += call.charge.amount_cents
            seconds[call.event.tier] += call.charge.billable_seconds
    for (tier, direction), amount_cents in cents.items():
        DEBITED_CENTS.labels(tier, direction).inc(amount_cents)
    for tier, billed_seconds in seconds.items():
        BILLED_SECONDS.labels(tier).inc(billed_seconds)


def age_s(stream_id: str, now: datetime) -> float:
    """How long before `now` an entry came into the stream, by Redis's clock; never negative, where clocks differ."""
    return max(now.timestamp() - int(stream_id.partition("-")[0]) / 1_000, 0.0)


class ValkeyMemoryCollector(Collector):
    """How full Valkey is, asked when Prometheus asks; nothing is told while it can't be asked, or the user may not ask."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metrics' names, without asking."""
        yield GaugeMetricFamily(
            "metering_valkey_memory_bytes",
            "What Valkey holds in memory, as far as it counts towards its limit.",
        )
        yield GaugeMetricFamily(
            "metering_valkey_memory_limit_bytes",
            "Valkey's `maxmemory`, above which it takes no more in. Not told where it has none.",
        )

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        try:
            told: Any = self._client.info("memory")
        except redis.RedisError:
            return
        used, limit = self.describe()
        # Buffers of replicas and of the append-only file aren't counted where it is decided whether there is room.
        held = told["used_memory"] - told.get("mem_not_counted_for_evict", 0)
        used.add_metric([], held)
        yield used
        if told.get("maxmemory"):
            limit.add_metric([], told["maxmemory"])
            yield limit


class BacklogCollector(Collector):
    """What waits in the stream, asked of Redis when Prometheus asks; nothing is told while Redis can't be asked."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metrics' names, without asking Redis."""
        yield GaugeMetricFamily(
            "metering_stream_lag_events",
            "Lag of the consumer group: events in the stream that no meter has read.",
        )
        yield GaugeMetricFamily(
            "metering_stream_pending_events",
            "Pending events of the consumer group: delivered to a meter and not acknowledged.",
        )
        yield GaugeMetricFamily(
            "metering_stream_oldest_event_seconds",
            "Age of the oldest event in the stream that is not acknowledged.",
        )

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        try:
            waiting = backlog(self._client)
        except redis.RedisError:
            return
        values = (waiting.lag, waiting.pending, waiting.oldest_age_s)
        for metric, value in zip(self.describe(), values, strict=True):
            metric.add_metric([], value)
            yield metric

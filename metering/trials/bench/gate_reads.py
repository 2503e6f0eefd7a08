"""How long telephony waits for the answer to `HGET gate:42 state`."""

import time
from typing import Final

import redis

from metering.runtime.names import gate_key
from metering.trials.bench.percentiles import Percentiles, percentiles

READS: Final = 5_000


def measure_gate_reads(client: redis.Redis, *, orgs: int) -> Percentiles:
    """One read after the other on an idle system, each one round trip, by redis-py."""
    took_s: list[float] = []
    for number in range(READS):
        started_s = time.perf_counter()
        client.hget(gate_key(number % orgs + 1), "state")
        took_s.append(time.perf_counter() - started_s)
    return percentiles(took_s)

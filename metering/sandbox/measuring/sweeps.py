"""How long a sweep takes over gates that are all right."""

import redis
from sqlalchemy import Engine

from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from workers.sweep import Sweep


def measure_sweep(engine: Engine, client: redis.Redis) -> tuple[float, int]:
    """Seconds, and how many gates there were."""
    sweep = Sweep(engine, Gates(client), clock=system_clock)
    sweep.sweep()
    swept = sweep.sweep()
    return swept.took_s, swept.orgs

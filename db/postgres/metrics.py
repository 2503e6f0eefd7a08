"""What this process's connections to Postgres tell Prometheus (docs/reference/metrics.md)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool


@dataclass(frozen=True, slots=True)
class PoolUse:
    """How many of a pool's connections somebody works with, and how many it may have."""

    in_use: int
    limit: int


class Connections(Collector):
    """The pools of this process by name, asked when Prometheus asks: no request is any slower for it."""

    def __init__(self) -> None:
        self._pools: dict[str, Callable[[], PoolUse]] = {}

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metrics' names."""
        yield GaugeMetricFamily(
            "metering_postgres_connections_in_use",
            "Connections to Postgres that somebody works with, by pool.",
            labels=["pool"],
        )
        yield GaugeMetricFamily(
            "metering_postgres_connections_limit",
            "Connections to Postgres that a pool may have.",
            labels=["pool"],
        )

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        used = {name: use() for name, use in tuple(self._pools.items())}
        in_use, limit = self.describe()
        for name, use in used.items():
            in_use.add_metric([name], use.in_use)
            limit.add_metric([name], use.limit)
        yield in_use
        yield limit

    @contextmanager
    def told(self, pool: str, use: Callable[[], PoolUse]) -> Iterator[None]:
        """Tell of a pool for the time of a with block. Its name is the program's own, and begins with the role's."""
        self._pools[pool] = use
        try:
            yield
        finally:
            del self._pools[pool]


CONNECTIONS: Final = Connections()
REGISTRY.register(CONNECTIONS)


def use_of(engine: Engine) -> PoolUse:
    """How an engine's connections are used; its pool may be another one each time, as outages replace it."""
    pool: Any = engine.pool
    return PoolUse(pool.checkedout(), pool.size()) if isinstance(pool, QueuePool) else PoolUse(0, 0)

"""Latencies in short."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `count` latencies, in milliseconds. A percentile is one that was measured (nearest rank), never one in between."""

    p50_ms: float
    p99_ms: float
    highest_ms: float
    count: int


def percentiles(latencies_s: Iterable[float]) -> Percentiles:
    """In short. ValueError if there are none."""
    ordered = sorted(latencies_s)
    if not ordered:
        raise ValueError("there is nothing that was measured")

    def rank_ms(share: float) -> float:
        return ordered[ceil(share * len(ordered)) - 1] * 1_000

    return Percentiles(rank_ms(0.50), rank_ms(0.99), ordered[-1] * 1_000, len(ordered))

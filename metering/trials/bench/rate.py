"""Rates, and how far they spread from one repetition to the next."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


class MeasuringError(Exception):
    """What was to be measured can't be. The text says why."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many events, or rows, in how long."""

    count: int
    took_s: float

    @property
    def per_second(self) -> float:
        return self.count / self.took_s


@dataclass(frozen=True, slots=True)
class Spread:
    """What the repetitions of one measurement gave, per second. The median counts."""

    median: float
    lowest: float
    highest: float
    repetitions: int


def spread(rates: Sequence[Rate]) -> Spread:
    """The spread of one or more repetitions."""
    each = [rate.per_second for rate in rates]
    return Spread(statistics.median(each), min(each), max(each), len(each))

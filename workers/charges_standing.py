"""How charges and auto-reloads stand, told to Prometheus: open attempts with their age, and paused reloads."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from db.attempts.reload_status import ChargesStanding, read_charges_standing
from db.postgres.clock import read_clock
from metering.rules.stripe_codes import known_code
from workers.periodic import PeriodicTask

PERIOD_S: Final = 15.0
REST: Final = 100
"""How many times as long as reading took the pause after it is: it gets at most a hundredth of a processor of Postgres's."""
TOLD_FOR_S: Final = 120.0
"""For how long it is told: while Postgres is away nobody knows, and a number that stands still would be believed."""


@dataclass(frozen=True, slots=True)
class _Read:
    standing: ChargesStanding
    at_s: float
    told_until_s: float


class ChargesCollector(Collector):
    """What was last read. Ages grow on until it is read again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._read: _Read | None = None

    def task(self) -> PeriodicTask:
        """What keeps it up to date."""
        return PeriodicTask("standing of charges", self.read, PERIOD_S)

    def read(self, stop: threading.Event) -> None:
        """Ask Postgres, then rest for as long as that is to cost. Raises what Postgres raises."""
        began_s = time.monotonic()
        with self._engine.connect() as connection:
            standing = read_charges_standing(connection, read_clock(connection))
        now_s = time.monotonic()
        rest_s = max((now_s - began_s) * REST - PERIOD_S, 0.0)
        self._read = _Read(standing, now_s, now_s + TOLD_FOR_S + rest_s)
        stop.wait(rest_s)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metrics' names, without asking anybody."""
        yield GaugeMetricFamily(
            "metering_attempts_open", "Charges that are not decided yet, by kind.", labels=["kind"]
        )
        yield GaugeMetricFamily(
            "metering_attempts_oldest_open_seconds",
            "Age of the oldest charge that is not decided yet, by kind; 0 where there is none.",
            labels=["kind"],
        )
        yield GaugeMetricFamily("metering_auto_reload_orgs", "Orgs that have auto-reload enabled.")
        yield GaugeMetricFamily(
            "metering_auto_reload_paused_orgs",
            "Those of them whose reloads are paused, by the code that led to it.",
            labels=["code"],
        )

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are known; nothing where that is too long ago."""
        read, now_s = self._read, time.monotonic()
        if read is None or now_s > read.told_until_s:
            return
        since_s = now_s - read.at_s
        number, age, enabled, paused = self.describe()
        for kind, opened in read.standing.attempts.items():
            number.add_metric([kind], opened.number)
            age.add_metric([kind], opened.oldest_s + since_s if opened.number else 0.0)
        enabled.add_metric([], read.standing.enabled)
        codes: Counter[str] = Counter()
        for code, orgs in read.standing.paused.items():
            codes[known_code(code)] += orgs
        for code, orgs in codes.items():
            paused.add_metric([code], orgs)
        yield from (number, age, enabled, paused)

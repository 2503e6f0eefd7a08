"""A line a minute in a role's log: what it has done since the last one, by its own metrics, so that counting costs nothing."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import REGISTRY

from metering.runtime.role_metrics import API, JOBS, METER

EVERY_S: Final = 60.0
EVENT: Final = "summary"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Told:
    """What of a metric is told: a sample's name, the label by which it is told apart, and what isn't counted as work."""

    sample: str
    by: str | None = None
    but: tuple[str, ...] = ()
    """Values of any label that anybody brings about all the time: health checks, the look into Stripe's list of events."""


_CHARGES: Final = {
    "auto_reloads": _Told("metering_auto_reload_attempts_total", "outcome"),
    "top_ups": _Told("metering_top_up_attempts_total", "outcome"),
    "declines": _Told("metering_declines_total", "code"),
    "stripe_requests": _Told("metering_stripe_request_seconds_count", "outcome", ("events.list",)),
    "stripe_events": _Told("metering_stripe_events_total", "outcome"),
    "stripe_not_booked": _Told("metering_stripe_not_booked_total", "reason"),
}
_SKIPPED: Final = {"auto_reloads_skipped": _Told("metering_auto_reload_skipped_total", "reason")}
TOLD: Final[Mapping[str, Mapping[str, _Told]]] = {
    METER: {
        "events": _Told("metering_events_total", "outcome"),
        "debited_cents": _Told("metering_debited_cents_total"),
        "billed_seconds": _Told("metering_billed_seconds_total"),
        "batches": _Told("metering_batch_seconds_count"),
        "busy_seconds": _Told("metering_batch_seconds_sum"),
        **_SKIPPED,
    },
    JOBS: {**_CHARGES, **_SKIPPED, "gates_mended": _Told("metering_gates_mended_total")},
    API: {
        "requests": _Told("metering_http_requests_total", "status", ("/readyz", "/v1/healthz")),
        **_CHARGES,
        **_SKIPPED,
    },
}
"""By role: the fields of its line."""

Numbers = dict[str, dict[str, float]]
"""By field and label value; a field that isn't told apart has one value, of no name."""


class Summary:
    """What a role has counted since it was last told."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._fields = TOLD.get(role, {})
        self._told = self._numbers()

    def tell(self) -> bool:
        """Log what has been done since the last time; give whether there was anything."""
        now = self._numbers()
        news: dict[str, object] = {}
        for field, values in now.items():
            before = self._told.get(field, {})
            risen = {name: _rounded(value - before.get(name, 0.0)) for name, value in values.items()}
            done = {name: rise for name, rise in sorted(risen.items()) if rise}
            if done:
                news[field] = done if self._fields[field].by else done[""]
        self._told = now
        if news:
            log.info(EVENT, role=self._role, **news)
        return bool(news)

    def _numbers(self) -> Numbers:
        samples = {told.sample: (field, told) for field, told in self._fields.items()}
        found: Numbers = defaultdict(lambda: defaultdict(float))
        for metric in REGISTRY.restricted_registry(list(samples)).collect():
            for sample in metric.samples:
                if sample.name in samples:
                    field, told = samples[sample.name]
                    if not set(told.but) & set(sample.labels.values()):
                        found[field][_name(told, sample.labels)] += sample.value
        return found


@contextmanager
def summaries(role: str, *, every_s: float = EVERY_S) -> Iterator[None]:
    """Tell what `role` does every minute in which it does anything, and the rest when the block ends."""
    summary, ended = Summary(role), threading.Event()

    def run() -> None:
        while not ended.wait(every_s):
            summary.tell()

    thread = threading.Thread(target=run, name="summaries", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        summary.tell()


def _name(told: _Told, labels: Mapping[str, str]) -> str:
    if told.by is None:
        return ""
    return f"{labels[told.by][:1]}xx" if told.by == "status" else labels[told.by]


def _rounded(value: float) -> float:
    return int(value) if value.is_integer() else round(value, 3)

"""Which role knows which metrics: a process exports what its role knows, whatever else its modules have registered.

A role that doesn't know a number would otherwise tell a 0, and a sum or a maximum over all roles would take that for an answer.
"""

import math
from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

METER: Final = "meter"
JOBS: Final = "jobs"
API: Final = "api"

_BILLING: Final = frozenset({METER})
_STANDING: Final = frozenset({JOBS})
_CHARGES: Final = frozenset({JOBS, API})
_ALL: Final = frozenset({METER, JOBS, API})

ROLES: Final = {
    "metering_events": _BILLING,
    "metering_debited_cents": _BILLING,
    "metering_billed_seconds": _BILLING,
    "metering_batch_seconds": _BILLING,
    "metering_batch_events": _BILLING,
    "metering_event_to_commit_seconds": _BILLING,
    "metering_commit_to_signal_seconds": _BILLING,
    "metering_stream_lag_events": _STANDING,
    "metering_stream_pending_events": _STANDING,
    "metering_stream_oldest_event_seconds": _STANDING,
    "metering_gates_exhausted": _STANDING,
    "metering_gates_suspended": _STANDING,
    "metering_holds_open": _STANDING,
    "metering_holds_lapsed": _STANDING,
    "metering_held_cents": _STANDING,
    "metering_holds_started": _STANDING,
    "metering_holds_refused": _STANDING,
    "metering_holds_lapses": _STANDING,
    "metering_orgs": _STANDING,
    "metering_balances_cents": _STANDING,
    "metering_attempts_open": _STANDING,
    "metering_attempts_oldest_open_seconds": _STANDING,
    "metering_auto_reload_orgs": _STANDING,
    "metering_auto_reload_paused_orgs": _STANDING,
    "metering_valkey_memory_bytes": _STANDING,
    "metering_valkey_memory_limit_bytes": _STANDING,
    "metering_overspent_orgs": _STANDING,
    "metering_overspent_cents": _STANDING,
    "metering_gates_mended": _STANDING,
    "metering_sweep_seconds": _STANDING,
    "metering_invariant_violations": _STANDING,
    "metering_audit_age_seconds": _STANDING,
    "metering_audit_seconds": _STANDING,
    "metering_auto_reload_attempts": _CHARGES,
    "metering_auto_reload_skipped": _ALL,
    "metering_declines": _CHARGES,
    "metering_top_up_attempts": _CHARGES,
    "metering_stripe_request_seconds": _CHARGES,
    "metering_stripe_events": _CHARGES,
    "metering_stripe_event_list_age_seconds": _STANDING,
    "metering_longest_open_attempt_seconds": _STANDING,
    "metering_stripe_missing": _CHARGES,
    "metering_stripe_not_booked": _CHARGES,
    "metering_stripe_metadata_differs": _CHARGES,
    "metering_clock_difference_seconds": _ALL,
    "metering_build_info": _ALL,
    "metering_postgres_connections_in_use": _ALL,
    "metering_postgres_connections_limit": _ALL,
    "metering_http_events": frozenset({API}),
    "metering_http_requests": frozenset({API}),
    "metering_http_request_seconds": frozenset({API}),
}
"""By the name that it is made with. One that isn't here is everybody's."""
UNKNOWN: Final = math.nan
"""What a gauge holds until its role knows its value: it isn't exported."""


class RoleMetrics(Collector):
    """All that is registered, but for what the role doesn't know."""

    def __init__(self, role: str) -> None:
        self._role = role

    def collect(self) -> Iterator[Metric]:
        """Each metric with the values that are known."""
        for metric in REGISTRY.collect():
            if self._role in ROLES.get(metric.name, {self._role}):
                yield _known(metric)


def role_registry(role: str) -> CollectorRegistry:
    """What `role` exports."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RoleMetrics(role))
    return registry


def _known(metric: Metric) -> Metric:
    known = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    known.samples = [sample for sample in metric.samples if not math.isnan(sample.value)]
    return known

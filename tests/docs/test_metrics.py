"""The metrics' page names each metric that the roles serve, with its labels, and nothing else."""

import re
from typing import Any, Final

import redis
from prometheus_client import REGISTRY
from sqlalchemy import create_engine

from db.postgres.metrics import CONNECTIONS
from metering.api import event_intake, http_metrics
from metering.console.clock_watch import CLOCK_DIFFERENCE_SECONDS
from metering.payments import metrics as payments_metrics
from metering.runtime.build_info import BUILD_INFO
from tests.deploy.composed import METRICS_PORT
from tests.docs.pages import page, rows
from workers.audit_job import INVARIANT_VIOLATIONS
from workers.charges_standing import ChargesCollector
from workers.hold_reconciler import HoldCountsCollector
from workers.metrics import BacklogCollector, ValkeyMemoryCollector
from workers.overspent import OVERSPENT_ORGS

PAGE: Final = page("reference/metrics.md")
NAMED: Final = {
    name: labels
    for row in rows(PAGE)
    for name, labels in re.findall(r"`(metering_\w+)(?:\{([\w,]+)\})?`", row[0])
}


ASKED: Final[tuple[Any, ...]] = (
    BacklogCollector(redis.Redis()),
    ValkeyMemoryCollector(redis.Redis()),
    HoldCountsCollector(redis.Redis()),
    ChargesCollector(create_engine("postgresql+psycopg://")),
    CONNECTIONS,
)
"""Those that ask when they are asked: here they only describe, and nothing connects."""


def served() -> dict[str, str]:
    """By metric, as it is served: its labels."""
    for imported in (
        CLOCK_DIFFERENCE_SECONDS,
        payments_metrics.RELOAD_ATTEMPTS,
        http_metrics.REQUESTS,
        event_intake.HTTP_EVENTS,
        INVARIANT_VIOLATIONS,
        BUILD_INFO,
        OVERSPENT_ORGS,
    ):
        assert imported in REGISTRY._collector_to_names  # and so registered
    asked: tuple[Any, ...] = (*REGISTRY._collector_to_names, *ASKED)
    describing = [each for each in asked if hasattr(each, "describe")]
    metrics = [metric for each in describing for metric in each.describe()]
    labels = dict(REGISTRY._names_to_collectors)
    return {
        metric.name + ("_total" if metric.type == "counter" else ""): ",".join(
            getattr(labels.get(metric.name, metric), "_labelnames", getattr(metric, "_labelnames", ()))
        )
        for metric in metrics
        if metric.name.startswith("metering_")
    }


def test_every_metric_is_in_the_table_with_its_labels_and_no_other() -> None:
    assert served() == NAMED


def test_the_port_is_that_of_the_compose_file() -> None:
    assert f"port: {METRICS_PORT}" in PAGE

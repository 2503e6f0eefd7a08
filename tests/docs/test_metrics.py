"""The metrics' page names each metric that the roles serve, with its labels, and nothing else."""

import re
from typing import Any, Final

import redis
from prometheus_client import REGISTRY

from metering.api import http_metrics
from metering.payments import metrics as payments_metrics
from tests.deploy.composed import METRICS_PORT
from tests.docs.pages import page, rows
from workers.audit_job import INVARIANT_VIOLATIONS
from workers.metrics import BacklogCollector

PAGE: Final = page("reference/metrics.md")
NAMED: Final = {
    name: labels
    for row in rows(PAGE)
    for name, labels in re.findall(r"`(metering_\w+)(?:\{([\w,]+)\})?`", row[0])
}


def labels_of(name: str) -> str:
    """The labels of a registered metric, as the page writes them."""
    collector: Any = REGISTRY._names_to_collectors.get(name)
    return ",".join(getattr(collector, "_labelnames", ()))


def test_every_metric_is_in_the_table_and_no_other() -> None:
    for imported in (payments_metrics.RELOAD_ATTEMPTS, http_metrics.REQUESTS, INVARIANT_VIOLATIONS):
        assert imported in REGISTRY._collector_to_names  # and so registered
    backlog = BacklogCollector(redis.Redis())  # it only describes; nothing connects
    metrics = [metric for each in (REGISTRY.collect(), backlog.describe()) for metric in each]
    ours = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in metrics
        if metric.name.startswith("metering_")
    }
    assert NAMED.keys() == ours


def test_labels_are_the_programs_own() -> None:
    for name, labels in NAMED.items():
        assert labels == labels_of(name), name


def test_the_port_is_that_of_the_compose_file() -> None:
    assert f"port: {METRICS_PORT}" in PAGE

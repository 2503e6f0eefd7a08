"""Each role, scraped: it exports what it knows, as the operators' page says, and nothing else."""

import json
import math
import re
import signal
from typing import Final
from urllib.request import urlopen

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

import db.postgres.metrics
import metering.api.http_metrics
import metering.console.clock_watch
import metering.payments.metrics
import metering.runtime.build_info
import workers.audit_job
import workers.metrics
from metering.runtime.role_metrics import API, JOBS, METER, ROLES, UNKNOWN, role_registry
from tests.cli.conftest import Cli
from tests.cli.waiting import wait_until
from tests.docs.pages import page, rows

MADE_BY: Final = (
    db.postgres.metrics,
    metering.api.http_metrics,
    metering.console.clock_watch,
    metering.payments.metrics,
    metering.runtime.build_info,
    workers.audit_job,
    workers.metrics,
)
"""Whoever makes metrics: imported here, so that all are registered."""


def documented() -> dict[str, set[str]]:
    """By metric, without `_total`: the roles that export it, by the table."""
    found = {}
    for first, second, *_ in rows(page("reference/metrics.md")):
        for name in re.findall(r"`(metering_\w+?)(?:_total)?(?:\{[^}]*\})?`", first):
            found[name] = (
                {METER, JOBS, API} if second.strip() == "all" else set(re.findall(r"`(\w+)`", second))
            )
    return found


def test_every_metric_has_its_roles_as_the_page_says() -> None:
    assert all(MADE_BY)
    registered = {metric.name for metric in REGISTRY.collect() if metric.name.startswith("metering_")}
    assert registered <= set(ROLES)
    pages = documented()
    assert {name: set(roles) for name, roles in ROLES.items()} == {name: pages.get(name) for name in ROLES}


@pytest.mark.parametrize("role", [METER, JOBS, API])
def test_a_role_exports_what_it_knows_and_nothing_else(cli: Cli, role: str) -> None:
    settings = {**cli.settings, "METERING_METRICS_PORT": "0", "METERING_HTTP_PORT": "0"}
    with Cli(settings).start(role) as process:
        try:
            assert process.stderr is not None
            url = ""
            while not url:
                line = json.loads(process.stderr.readline())
                url = line["url"] if line["event"] == "metrics are served" else ""
            # At once: nothing that isn't known yet may be told.
            assert all(not math.isnan(value) for values in scraped(url).values() for value in values)
            wait_until(lambda: "metering_clock_difference_seconds" in scraped(url), "a look at the clocks")
            if role == JOBS:
                wait_until(lambda: scraped(url).get("metering_gates_exhausted") == {0.0}, "a reconciliation")
                open_longest = "metering_longest_open_attempt_seconds"
                wait_until(lambda: scraped(url).get(open_longest) == {0.0}, "a look at open attempts")
                wait_until(lambda: scraped(url).get("metering_attempts_open") == {0.0}, "a look at charges")
            found = {name for name in scraped(url) if name.startswith("metering_")}
            assert scraped(url)["metering_build_info"] == {1.0}
            assert all(scraped(url)["metering_postgres_connections_limit"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    known = {name for name, roles in ROLES.items() if role in roles}
    assert found <= known
    maybe = {
        "metering_audit_age_seconds",
        "metering_stripe_event_list_age_seconds",
        "metering_valkey_memory_limit_bytes",
    }
    assert known - found <= maybe, (
        "there once an audit has ended and Stripe has told, and where Valkey has a limit"
    )


def scraped(url: str) -> dict[str, set[float]]:
    """By metric: the values that are told."""
    with urlopen(url, timeout=10) as answer:  # noqa: S310 - our own
        text = answer.read().decode()
    return {
        each.name: {sample.value for sample in each.samples} for each in text_string_to_metric_families(text)
    }


def test_a_gauge_that_nobody_has_set_is_not_told() -> None:
    before = workers.metrics.GATES_EXHAUSTED._value.get()
    try:
        workers.metrics.GATES_EXHAUSTED.set(UNKNOWN)
        assert role_registry(JOBS).get_sample_value("metering_gates_exhausted") is None
        workers.metrics.GATES_EXHAUSTED.set(3)
        assert role_registry(JOBS).get_sample_value("metering_gates_exhausted") == 3
        assert role_registry(METER).get_sample_value("metering_gates_exhausted") is None
    finally:
        workers.metrics.GATES_EXHAUSTED.set(before)

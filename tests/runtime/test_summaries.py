"""A line a minute of what a role did, if it did anything."""

import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from metering.api.http_metrics import REQUESTS
from metering.payments.metrics import STRIPE_REQUEST_SECONDS
from metering.runtime.role_metrics import API, JOBS, METER, ROLES
from metering.runtime.summaries import TOLD, Summary, summaries
from tests.waiting import wait_until
from workers.metrics import BATCH_SECONDS, DEBITED_CENTS, EVENTS


@pytest.fixture(autouse=True)
def from_info_on(_logs: None) -> None:
    structlog.reset_defaults()


def told(summary: Summary) -> list[dict[str, object]]:
    with capture_logs() as logs:
        summary.tell()
    return [{name: value for name, value in each.items() if name != "log_level"} for each in logs]


def test_what_was_done_since_the_last_time_is_told_in_one_line() -> None:
    summary = Summary(METER)
    EVENTS.labels("debited").inc(40)
    EVENTS.labels("duplicate").inc(2)
    DEBITED_CENTS.labels("bolt", "outbound").inc(300)
    DEBITED_CENTS.labels("zip", "inbound").inc(20)
    BATCH_SECONDS.observe(0.25)
    line = {"event": "summary", "role": METER, "events": {"debited": 40, "duplicate": 2}}
    assert told(summary) == [line | {"debited_cents": 320, "batches": 1, "busy_seconds": 0.25}]
    EVENTS.labels("debited").inc()
    assert told(summary) == [{"event": "summary", "role": METER, "events": {"debited": 1}}]


@pytest.mark.parametrize("role", [METER, JOBS, API])
def test_a_role_that_did_nothing_says_nothing(role: str) -> None:
    summary = Summary(role)
    REQUESTS.labels("GET", "/readyz", "200").inc()
    STRIPE_REQUEST_SECONDS.labels("events.list", "ok").observe(0.1)
    assert told(summary) == []


def test_requests_are_told_by_the_class_of_their_status() -> None:
    summary = Summary(API)
    REQUESTS.labels("GET", "/v1/billing", "200").inc(3)
    REQUESTS.labels("POST", "/v1/billing/top-up", "201").inc()
    REQUESTS.labels("POST", "/v1/billing/top-up", "503").inc()
    assert told(summary) == [{"event": "summary", "role": API, "requests": {"2xx": 4, "5xx": 1}}]


def test_what_is_left_is_told_at_the_end() -> None:
    with capture_logs() as logs, summaries(METER):
        EVENTS.labels("debited").inc(5)
    assert [each["events"] for each in logs] == [{"debited": 5}]


def test_it_is_told_again_and_again() -> None:
    with capture_logs() as logs, summaries(METER, every_s=0.01):
        EVENTS.labels("debited").inc()
        wait_until(lambda: len(logs) == 1, limit_s=10)
        EVENTS.labels("debited").inc()
        wait_until(lambda: len(logs) == 2, limit_s=10)
    assert len(logs) == 2


def test_a_summary_tells_of_what_its_role_exports() -> None:
    for role, fields in TOLD.items():
        for each in fields.values():
            name = each.sample.removesuffix("_total").removesuffix("_count").removesuffix("_sum")
            assert role in ROLES[name], (role, name)
            assert each.sample in REGISTRY._names_to_collectors

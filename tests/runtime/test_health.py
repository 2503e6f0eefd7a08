"""What a server refuses is told at once, and again, until it is mended."""

from http import HTTPStatus
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
from structlog.testing import capture_logs

from metering.runtime import metrics_server
from metering.runtime.health import POSTGRES, REDIS, SAID_EVERY_S, STATEMENT_LASTS_S, Health
from metering.runtime.metrics_server import serving_metrics


class Watch:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def asked(url: str) -> tuple[int, str]:
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_a_refused_connection_counts_until_one_is_taken() -> None:
    watch = Watch()
    health = Health(monotonic=watch)
    assert health.refusals() == []
    health.connection_refused(POSTGRES, "FATAL:  password\n wrong")
    watch.now_s += 10 * STATEMENT_LASTS_S
    [refusal] = health.refusals()
    assert (refusal.server, refusal.reason) == (POSTGRES, "FATAL: password wrong")
    health.accepted(REDIS)
    assert health.refusals() == [refusal]
    health.accepted(POSTGRES)
    assert health.refusals() == []


def test_a_refused_statement_counts_while_it_is_refused_again_and_again() -> None:
    watch = Watch()
    health = Health(monotonic=watch)
    health.statement_refused(POSTGRES, "permission denied")
    health.accepted(POSTGRES)
    watch.now_s += STATEMENT_LASTS_S - 1
    health.statement_refused(POSTGRES, "permission denied")
    watch.now_s += STATEMENT_LASTS_S - 1
    assert len(health.refusals()) == 1
    watch.now_s += 2
    assert health.refusals() == []


def test_what_is_wrong_with_a_server_counts_until_it_is_right() -> None:
    health = Health()
    health.unfit(REDIS, "would evict")
    assert [each.reason for each in health.refusals()] == ["would evict"]
    health.unfit(REDIS, None)
    assert health.refusals() == []


def test_it_is_logged_at_once_and_then_seldom() -> None:
    watch = Watch()
    health = Health(monotonic=watch)
    with capture_logs() as said:
        health.connection_refused(POSTGRES, "to a command")
        health.accepted(POSTGRES)
    assert said == []
    health.log_refusals()
    with capture_logs() as said:
        for _ in range(50):
            health.connection_refused(POSTGRES, "wrong password")
        assert [each["log_level"] for each in said] == ["error"]
        watch.now_s += SAID_EVERY_S
        health.connection_refused(POSTGRES, "wrong password")
        assert len(said) == 2
        health.connection_refused(POSTGRES, "no such database")
        assert len(said) == 3
        health.accepted(POSTGRES)
        assert said[-1]["event"] == "a server refuses no longer"


def test_it_is_served_beside_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health()
    monkeypatch.setattr(metrics_server, "HEALTH", health)
    with serving_metrics("127.0.0.1", 0, "meter") as metrics_url:
        url = metrics_url.replace("/metrics", "/healthz")
        assert asked(url) == (HTTPStatus.OK, "ok\n")
        health.connection_refused(POSTGRES, "wrong password")
        status, said = asked(url)
        assert status == HTTPStatus.SERVICE_UNAVAILABLE
        assert said.startswith("postgres refuses, since 20")
        assert said.endswith(": wrong password\n")
        with build_opener(ProxyHandler({})).open(metrics_url, timeout=10) as answer:
            assert b"# TYPE" in answer.read()

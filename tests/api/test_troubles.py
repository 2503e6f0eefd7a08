"""What happens when something is away, or nobody foresaw it: the contract's shape all the same, and no secret anywhere."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx
import pytest
from prometheus_client import REGISTRY, generate_latest
from sqlalchemy import make_url, text
from structlog.testing import capture_logs

from db.accounts.quick_reads import QuickReads
from db.postgres import writable
from db.postgres.engine import make_engine, transaction
from metering.api import accounts, transactions
from metering.api.app import make_app
from metering.api.http_metrics import UNMATCHED
from metering.api.thread_pools import QUICK_CONNECTIONS
from metering.runtime.health import HEALTH
from tests.api.site import Site, api_context, assert_problem, served
from tests.api.test_orgs_apart import REQUESTS
from tests.conftest import Database
from tests.db import execute_as, made_read_only
from tests.waiting import wait_until


@contextmanager
def without_postgres(site: Site, redis_url: str) -> Iterator[httpx.Client]:
    """A server whose Postgres is away."""
    nowhere = "postgresql+psycopg://metering_app@127.0.0.1:1/metering"
    database = Database("", nowhere, "", site.world.engine)
    with (
        api_context(database, redis_url, site.world) as context,
        served(make_app(context)) as url,
        httpx.Client(base_url=url, headers=site.headers(1), timeout=10) as http,
    ):
        yield http


def test_while_postgres_is_away_clients_are_told_to_come_again(site: Site, redis_url: str) -> None:
    site.world.adjust(7)
    with without_postgres(site, redis_url) as http:
        for method, path, request in REQUESTS:
            response = http.request(method, path, **request)
            assert set(assert_problem(response, 503, "unavailable")) == {"detail", "code"}
            assert response.headers["retry-after"] == "1"
        assert assert_problem(http.get("/readyz"), 503, "not_ready")["away"] == ["postgres"]
        assert http.get("/v1/healthz").json() == {"ok": True}
        # Telephony's gate needs Redis alone.
        telephony = {"Authorization": "Bearer telephony-token"}
        assert http.get("/v1/gate/1", headers=telephony).json()["balance_cents"] == 7


def test_a_database_that_takes_no_writes_is_away(site: Site) -> None:
    """Until it takes them again; nobody stays on a connection of that time."""
    asked = [partial(site.get, "/v1/billing"), partial(site.get, "/v1/billing/transactions")]
    assert [ask().status_code for ask in asked] == [200, 200]
    with made_read_only(site.admin_url):
        assert assert_problem(site.http.get("/readyz"), 503, "not_ready")["away"] == ["postgres"]
        for ask in (*asked, partial(site.patch, auto_reload_minimum_cents=5)):
            assert_problem(ask(), 503, "unavailable")
    for _ in range(20):
        assert site.http.get("/readyz").json() == {"ok": True}
        assert [ask().status_code for ask in asked] == [200, 200]
        assert site.patch(auto_reload_minimum_cents=5).status_code == 200


def test_sessions_that_were_ended_while_idle_fail_nobody(site: Site) -> None:
    """By `idle_session_timeout`, or by a load balancer: the first request after it is answered like any other."""
    asked = [
        partial(site.get, "/v1/billing"),
        partial(site.get, "/v1/billing/transactions"),
        partial(site.http.get, "/readyz"),
        partial(site.patch, auto_reload_minimum_cents=5),
        partial(site.post, "/v1/billing/setup-intent"),
    ]
    for _ in range(3):
        assert [ask().status_code for ask in asked] == [200] * 5
        end_sessions(site)


def end_sessions(site: Site) -> None:
    url = make_url(site.admin_url)
    others = f"FROM pg_stat_activity WHERE datname = '{url.database}' AND pid <> pg_backend_pid()"
    execute_as(site.admin_url, f"SELECT pg_terminate_backend(pid, 5000) {others}")


def test_what_a_server_refuses_is_told(site: Site) -> None:
    """A right that is missing is no outage: it doesn't pass, and whoever runs this must hear of it."""
    assert site.http.get("/readyz").json() == {"ok": True}
    execute_as(site.admin_url, "REVOKE UPDATE ON accounts FROM metering_app")
    try:
        assert_problem(site.patch(auto_reload_minimum_cents=7), 503, "unavailable")
        problem = assert_problem(site.http.get("/readyz"), 503, "not_ready")
        assert (problem["away"], problem["refused"]) == ([], ["postgres"])
    finally:
        # The server stands for all tests of the API. What it was given column by column went with the rest.
        execute_as(site.admin_url, "GRANT UPDATE ON accounts TO metering_app")
        HEALTH.forget()


def test_readyz_asks_whether_it_may_write(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sessions that were writable when they were last asked: who only reads may use them for some seconds yet."""
    monkeypatch.setattr(writable, "ASK_AGAIN_AFTER_S", 3_600.0)
    assert site.http.get("/readyz").status_code == 200
    with ExitStack() as stack:
        for _ in range(QUICK_CONNECTIONS):
            connection = stack.enter_context(site.context.engine.connect())
            connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
            connection.commit()
    assert site.http.get("/readyz").status_code == 503
    assert site.http.get("/readyz").status_code == 200  # that one was left


def test_an_account_that_somebody_holds_is_answered_503_and_not_changed(site: Site) -> None:
    engine = make_engine(
        site.context.engine.url.render_as_string(hide_password=False),
        application_name="tests",
        lock_timeout_ms=100,
    )
    key = site.key(1)
    with transaction(site.world.engine) as holder:
        holder.execute(text("SELECT 1 FROM accounts WHERE org_id = 1 FOR UPDATE"))
        impatient, patient = site.context, site.context.engine
        object.__setattr__(impatient, "engine", engine)
        try:
            response = site.patch(auto_reload_minimum_cents=5)
            assert_problem(response, 503, "unavailable")
            headers = {"Authorization": f"Bearer {key}"}
            assert (
                site.http.get("/v1/billing", headers=headers).status_code == 200
            )  # reading waits for nobody
        finally:
            object.__setattr__(impatient, "engine", patient)
            engine.dispose()
    assert site.world.account().auto_reload_minimum_cents == 0


@pytest.mark.parametrize(
    ("where", "what", "path"),
    [(QuickReads, "billing_of_key", "/v1/billing"), (accounts, "read_account", "/v1/billing?&")],
    ids=["quick", "framework"],
)
def test_what_nobody_foresaw_is_answered_500_and_noted(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: object, what: str, path: str
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("of our own making")

    assert site.get(path).status_code == 200  # so its key was good lately
    monkeypatch.setattr(where, what, fail)
    with capture_logs() as logs:
        response = site.get(path)
    body = assert_problem(response, 500, "internal_error")
    assert set(body) == {"detail", "code"}
    assert "making" not in response.text
    (line,) = [each for each in logs if each["log_level"] == "error"]
    assert (line["method"], line["route"], line["exc_info"]) == ("GET", "/v1/billing", True)
    assert site.key(1) not in str(logs)
    assert site.get("/v1/billing/transactions").status_code == 200


def test_a_mistake_in_sql_is_no_outage(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        with transaction(site.world.engine) as connection:
            connection.execute(text("SELECT 1 / :zero, :secret"), {"zero": 0, "secret": "s3cr3t"})

    monkeypatch.setattr(transactions, "list_transactions", fail)
    with capture_logs() as logs:
        assert_problem(site.get("/v1/billing/transactions"), 500, "internal_error")
    assert len([each for each in logs if each["log_level"] == "error"]) == 1
    assert "s3cr3t" not in str(logs)


def test_a_client_that_leaves_while_it_sends_troubles_nobody(site: Site) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    with capture_logs() as logs:
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/billing/top-up HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {site.key(1)}\r\n"
            head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            before = sample("POST", "/v1/billing/top-up", 499)
            connection.sendall(head.encode())
        wait_until(lambda: sample("POST", "/v1/billing/top-up", 499) == before + 1, limit_s=30)
    assert [each for each in logs if each["log_level"] == "error"] == []


def sample(method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    timed = REGISTRY.get_sample_value("metering_http_request_seconds_count", labels) or 0.0
    counted = REGISTRY.get_sample_value("metering_http_requests_total", labels) or 0.0
    assert timed <= counted <= timed + 1  # the one is noted after the other
    return timed


def reached(method: str, route: str, status: int, count: float) -> bool:
    return sample(method, route, status) == count


def test_requests_are_counted_by_the_pattern_of_their_route(site: Site) -> None:
    asked = [
        ("GET", "/v1/billing", "/v1/billing", 200),
        ("PATCH", "/v1/billing", "/v1/billing", 400),
        ("GET", "/v1/gate/1", "/v1/gate/{org_id}", 402),
        ("GET", "/v1/gate/2", "/v1/gate/{org_id}", 404),
        ("DELETE", "/v1/gate/1", "/v1/gate/{org_id}", 405),
    ]
    for method, path, route, status in asked:
        before = sample(method, route, status)
        assert site.ask(method, path).status_code == status
        wait_until(partial(reached, method, route, status, before + 1), limit_s=30)
    before = sample(UNMATCHED, UNMATCHED, 404)
    for method, path in [("GET", "/v1/made/up/1"), ("MADEUP", "/v1/made/up/2")]:
        site.ask(method, path)
    wait_until(lambda: sample(UNMATCHED, UNMATCHED, 404) == before + 2, limit_s=30)
    labels = {
        label: value
        for metric in REGISTRY.collect()
        if metric.name == "metering_http_requests"
        for each in metric.samples
        for label, value in each.labels.items()
    }
    assert set(labels) == {"method", "route", "status"}
    assert not any(name in str(labels) for name in ("made", "MADEUP"))


def test_methods_that_callers_make_up_are_one_in_the_metrics(site: Site) -> None:
    """1,000 requests with methods of 20 KB made one scrape 382 MB."""
    before = sample("other", "/v1/billing", 405)
    for number in range(20):
        method = f"M{'X' * 20_000}{number}"
        assert_problem(site.ask(method, "/v1/billing"), 405, "method_not_allowed")
        site.ask(method, "/v1/nowhere")
    wait_until(lambda: sample("other", "/v1/billing", 405) == before + 20, limit_s=30)
    assert "XXXX" not in generate_latest(REGISTRY).decode()


def test_no_answer_is_to_be_kept_by_anybody_between(site: Site) -> None:
    for path in ("/v1/billing", "/v1/gate/1", "/v1/nothing"):
        assert site.get(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/billing HTTP/1.1\r\nHost: h\r\nX: \0\r\n\r\n",
        b"GET /v1/billing HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /v1/billing/top-up HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"GET /v1/billing HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 80_000,
    ],
    ids=["nonsense", "NUL", "no host", "path", "length", "long"],
)
def test_what_is_no_http_is_refused_in_the_same_shape(site: Site, request_: bytes) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert json.loads(body)["code"] == "invalid_request"
    assert json.loads(body)["errors"][0]["field"] == "request"

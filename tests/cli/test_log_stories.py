"""One id finds the whole story of a call, a payment or a request in the logs of all roles, which run here as processes."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis

from db.accounts.api_keys import create_key
from db.ledger.adjustments import adjust
from db.postgres.engine import transaction
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import Servers
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET, StripeSandbox
from tests.cli.conftest import Cli
from tests.conftest import Database, _make_database
from tests.hostile.test_secrets import said_at
from tests.spine.billing import event, prepare, price, push
from tests.waiting import wait_until

LIMIT_S: Final = 60.0
ROLES: Final = ("meter", "jobs", "api")
ANY: Final = "any"
"""Where it is chance who comes first: Stripe's answer, or its webhook."""

Line = dict[str, Any]


@dataclass
class Site:
    """A customer of an installation whose roles log to files."""

    client: redis.Redis
    log_dir: Path
    url: str
    org_id: int
    key: str

    def push(self, *calls: dict[str, Any]) -> None:
        """Push events of calls of this org."""
        push(self.client, [event(org_id=self.org_id, **call) for call in calls])

    def grep(self, word: str) -> list[tuple[str, Line]]:
        """The lines of all roles in which a word stands, with the role, in their order."""
        found = [
            (role, json.loads(line))
            for role in ROLES
            for line in (self.log_dir / role).read_text().splitlines()
            if word in line and line.endswith("}")
        ]
        return sorted(found, key=lambda each: str(each[1]["timestamp"]))

    def story(self, word: str) -> list[tuple[str, str]]:
        """The same: who said what."""
        return [(role, line["event"]) for role, line in self.grep(word)]

    def told(self, role: str, event_name: str, which: Callable[[Line], bool] = lambda _: True) -> Line:
        """The first such line of a role, or of `any`, once it is there."""

        def lines() -> list[Line]:
            found = self.grep(f'"{event_name}"')
            return [
                line
                for by, line in found
                if role in {by, ANY} and line["event"] == event_name and which(line)
            ]

        wait_until(lines, limit_s=LIMIT_S)
        return lines()[0]

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return httpx.request(method, f"{self.url}/v1/billing{path}", headers=headers, timeout=60, **options)


@dataclass(frozen=True)
class Roles:
    """What runs for all stories: roles that log to files, on a database and a Stripe of their own."""

    database: Database
    client: redis.Redis
    log_dir: Path
    url: str
    sandbox: StripeSandbox
    org_ids: Iterator[int] = field(default_factory=lambda: count(1))
    """Each story has an org of its own."""


@pytest.fixture(scope="module")
def roles(
    servers: Servers, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Roles]:
    """The roles, started once: that takes longer than any story."""
    log_dir = tmp_path_factory.mktemp("stories")
    with ExitStack() as stack:
        database = stack.enter_context(contextmanager(_make_database)(servers, template_database))
        client = stack.enter_context(connect_redis(servers.redis_url))
        client.flushall()
        prepare(database.engine, org_ids=[], prices=[price("bolt", "0.08")])
        sandbox = stack.enter_context(
            StripeSandbox(api_keys=["sk_test_stories"], webhook_secrets=[WEBHOOK_SECRET])
        )
        cli = Cli(
            {
                "METERING_DATABASE_URL": database.url,
                "METERING_REDIS_URL": servers.redis_url,
                "METERING_HTTP_PORT": "0",
                "METERING_METRICS_PORT": "0",
                "STRIPE_API_KEY": "sk_test_stories",
                "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
                "STRIPE_API_BASE": sandbox.url,
            }
        )
        for role in ROLES:
            options = ("--verbose",) if role == "meter" else ()
            stack.enter_context(cli.logging_to(log_dir / role, role, *options))
        url = said_at(log_dir / "api", "the API is served")["url"]
        said_at(log_dir / "meter", "meter is ready")
        said_at(log_dir / "jobs", "jobs are running")
        sandbox.set_webhook(f"{url}/v1/stripe/webhook", secrets=[WEBHOOK_SECRET])
        yield Roles(database, client, log_dir, url, sandbox)


@pytest.fixture
def site(roles: Roles) -> Site:
    """An org with 5.00 and a card."""
    org_id = next(roles.org_ids)
    prepare(roles.database.engine, org_ids=[org_id], prices=[])
    with transaction(roles.database.engine) as connection:
        key = create_key(connection, org_id, system_clock()).api_key
        adjust(connection, org_id, amount_cents=500, reason="x", key="x")
    site = Site(roles.client, roles.log_dir, roles.url, org_id, key)
    made = site.ask("POST", "/setup-intent").json()
    method = roles.sandbox.confirm_setup(made["setup_intent_id"], card="pm_card_visa")
    assert site.ask("POST", "/default-payment-method", json={"payment_method_id": method}).is_success
    return site


def enable_reloads(site: Site, minimum_cents: int) -> httpx.Response:
    settings = {
        "auto_reload_enabled": True,
        "auto_reload_minimum_cents": minimum_cents,
        "auto_reload_amount_cents": 5_000,
    }
    answer = site.ask("PATCH", "", json=settings)
    assert answer.is_success, answer.text
    return answer


def test_one_id_finds_a_reload_from_the_call_to_the_webhook(site: Site) -> None:
    enable_reloads(site, 400)
    site.push({"call_id": 7_654_321, "duration_seconds": 1_800})
    call = site.told("meter", "call", lambda line: line["call_id"] == 7_654_321)
    assert (call["outcome"], call["amount_cents"], call["org_id"]) == ("debited", 240, site.org_id)
    due = site.told("meter", "an auto-reload is due")
    site.told(ANY, "a charge is settled", lambda line: line["attempt"] == due["attempt"])

    story = site.story(due["attempt"])
    assert story[0] == ("meter", "an auto-reload is due")
    assert ("jobs", "Stripe answered") in story
    assert {"a charge is settled"} <= {event_name for _, event_name in story}
    answered = next(line for _, line in site.grep(due["attempt"]) if line["event"] == "Stripe answered")
    assert answered["stripe_request_id"].startswith("req_")

    intent = answered["object"]
    site.told("api", "an event of Stripe's is handled", lambda line: line["object"] == intent)
    by_intent = site.story(intent)
    assert {("jobs", "Stripe answered"), ("api", "an event of Stripe's is handled")} <= set(by_intent)
    assert site.grep(answered["stripe_request_id"])


def test_the_line_of_a_call_says_what_became_of_it(site: Site) -> None:
    known = {"call_id": 1}
    site.push(known, known, {"call_id": 2, "tier": "none"}, {"call_id": 3, "duration_seconds": 0})
    site.told("meter", "call", lambda line: line["call_id"] == 3)
    lines = [
        line
        for _, line in site.grep('"call"')
        if line["event"] == "call" and line.get("org_id") == site.org_id
    ]
    assert [
        (line["call_id"], line["outcome"]) for line in sorted(lines, key=lambda line: line["stream_id"])
    ] == [
        (1, "debited"),
        (1, "duplicate"),
        (2, "rejected"),
        (3, "unbilled"),
    ]


def test_one_id_finds_a_request_and_what_it_led_to_in_the_jobs(site: Site) -> None:
    answer = enable_reloads(site, 1_000)  # at 5.00: a reload is due at once
    request_id = answer.headers["X-Request-Id"]
    site.told("jobs", "Stripe answered", lambda line: line.get("request_id") == request_id)
    site.told("api", "request", lambda line: line["request_id"] == request_id)
    story = site.story(request_id)
    assert ("api", "request") in story
    assert ("api", "an auto-reload is due") in story
    assert ("jobs", "Stripe answered") in story
    assert all(line["org_id"] == site.org_id for _, line in site.grep(request_id))


def test_one_id_finds_a_top_up_and_a_caller_may_choose_it(site: Site) -> None:
    answer = site.ask(
        "POST", "/top-up", json={"amount_cents": 700}, headers={"X-Request-Id": "order-1042.retry_1"}
    )
    assert answer.status_code == 201
    assert answer.headers["X-Request-Id"] == "order-1042.retry_1"
    site.told("api", "request", lambda line: line["request_id"] == "order-1042.retry_1")
    story = [event_name for role, event_name in site.story("order-1042.retry_1") if role == "api"]
    assert story[0] == "Stripe answered"
    assert {"a top-up's client has its answer", "request"} <= set(story)
    attempts = {line.get("attempt") for _, line in site.grep("order-1042.retry_1")} - {None}
    assert len(attempts) == 1
    assert "a charge is settled" in {event_name for _, event_name in site.story(str(attempts.pop()))}
    assert ("api", "an event of Stripe's is handled") in site.story(answer.json()["payment_intent_id"])


@pytest.mark.parametrize("sent", ["short", "x" * 65, 'a"b","level":"error', "with space", "é" * 10])
def test_an_id_that_could_be_taken_for_something_else_is_replaced(site: Site, sent: str) -> None:
    answer = site.ask("GET", "", headers={"X-Request-Id": sent.encode()})
    assert answer.is_success
    assert answer.headers["X-Request-Id"] != sent
    assert len(answer.headers["X-Request-Id"]) == 32


def test_what_is_only_read_leaves_no_line(site: Site) -> None:
    request_id = site.ask("GET", "").headers["X-Request-Id"]
    done = site.ask("PATCH", "", json={"auto_reload_monthly_limit_cents": 900}).headers["X-Request-Id"]
    site.told("api", "request", lambda line: line["request_id"] == done)
    assert site.grep(request_id) == []

"""The API over real HTTP: a server in a thread, real Postgres and Valkey, and a stand-in for Stripe."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx
import psycopg
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import make_url

from db.accounts.api_keys import create_key
from db.accounts.quick_reads import QuickReads
from db.models import Base
from db.postgres.engine import make_engine, transaction
from metering.api.app import make_app
from metering.api.context import ApiContext
from metering.api.server import bind, serve
from metering.api.thread_pools import QUICK_CONNECTIONS
from metering.runtime.redis_connection import connect_redis, connect_redis_async
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from metering.signals.gate_reader import GateReader
from metering.signals.holds import HoldsAsync
from tests.conftest import Database
from tests.payments.world import START, World

TELEPHONY_TOKEN: Final = "telephony-token"  # noqa: S105 - it protects nothing
QUICK: Final = "tests, quick"
"""The name of the connections that quick answers use."""
LIMIT_S: Final = 30.0
# The price book's version has its row from the beginning, and only rises.
EMPTY: Final = "; ".join(
    f"DELETE FROM {table}"  # noqa: S608 - our own names
    for table in Base.metadata.tables
    if table != "price_book"
).encode()


@contextmanager
def served(app: FastAPI, *, trusted_proxies: Sequence[str] = ()) -> Iterator[str]:
    """Serve an app on a free port of this machine; give its address."""
    stop, answers = threading.Event(), threading.Event()
    with bind("127.0.0.1", 0) as bound:
        server = threading.Thread(
            target=partial(serve, app, bound, stop=stop, ready=answers.set, trusted_proxies=trusted_proxies)
        )
        server.start()
        try:
            assert answers.wait(LIMIT_S)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            stop.set()
            server.join(LIMIT_S)
            assert not server.is_alive()


@contextmanager
def api_context(
    database: Database, redis_url: str, world: World, *, token: str | None = TELEPHONY_TOKEN
) -> Iterator[ApiContext]:
    """What the API works with, as `metering api` makes it."""
    quick = make_engine(database.url, application_name="tests", pool_size=QUICK_CONNECTIONS)
    client = connect_redis_async(redis_url, timeout_s=0.5, max_connections=8)
    yield ApiContext(
        engine=quick,
        reads=QuickReads(quick.url, application_name=QUICK),
        stream=connect_redis(redis_url),
        gate_reader=GateReader(client),
        holds=HoldsAsync(client),
        payments=world.payments,
        webhook_secrets=(WEBHOOK_SECRET,),
        telephony_token=None if token is None else SecretStr(token),
    )
    quick.dispose()


@dataclass
class Site:
    """A served API and what stands behind it. Requests are org 1's unless they say whose."""

    world: World
    context: ApiContext
    url: str
    http: httpx.Client
    admin_url: str
    keys: dict[int, str] = field(default_factory=dict)

    def key(self, org_id: int) -> str:
        """An org's API key, made when it is first needed."""
        if org_id not in self.keys:
            with transaction(self.world.engine) as connection:
                self.keys[org_id] = create_key(connection, org_id, self.world.clock()).api_key
        return self.keys[org_id]

    def headers(self, org_id: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key(org_id)}"}

    def ask(self, method: str, path: str, *, org_id: int = 1, **request: Any) -> httpx.Response:
        """Ask as an org."""
        headers = {**self.headers(org_id), **request.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **request)

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.ask("GET", path, **request)

    def post(self, path: str, **request: Any) -> httpx.Response:
        return self.ask("POST", path, **request)

    def patch(self, **settings: Any) -> httpx.Response:
        """PATCH /v1/billing."""
        return self.ask("PATCH", "/v1/billing", json=settings)

    def top_up(self, amount_cents: Any = 2_000, *, key: str | None = None, **request: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.post(
            "/v1/billing/top-up", json={"amount_cents": amount_cents}, headers=headers, **request
        )

    def empty(self) -> None:
        """Forget everything, as if it were new; the servers stay."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")  # no trigger refuses it
            connection.execute(EMPTY)
        self.world.sandbox.set_webhook(None)
        self.world.sandbox.reset()
        self.world.enqueued.clear()
        self.world.clock.at = START
        self.world.make_org(1)
        self.context.prices.clear()
        self.context.auth_rate_limit.clear()
        self.context.key_uses.clear()
        self.context.refusal_notes.clear()
        self.keys.clear()

    def take_webhooks(self) -> None:
        """Let Stripe send its webhooks here."""
        self.world.sandbox.set_webhook(f"{self.url}/v1/stripe/webhook", secrets=[WEBHOOK_SECRET])

    def balance_cents(self, org_id: int = 1) -> int:
        """As the API tells it."""
        balance: int = self.get("/v1/billing", org_id=org_id).json()["balance_cents"]
        return balance


@contextmanager
def make_site(database: Database, redis_url: str, world: World, **options: Any) -> Iterator[Site]:
    """A served API with org 1, which has neither money nor a card."""
    with (
        api_context(database, redis_url, world, **options) as context,
        served(make_app(context)) as url,
        httpx.Client(base_url=url, timeout=LIMIT_S) as http,
    ):
        admin = make_url(database.admin_url).set(drivername="postgresql")
        yield Site(world, context, url, http, admin.render_as_string(hide_password=False))


def assert_problem(response: httpx.Response, status: int, code: str, *fields: str) -> dict[str, Any]:
    """The contract's shape for errors, and nothing else; `fields` are those that bad input names."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert body["code"] == code, body
    assert isinstance(body["detail"], str)
    assert body["detail"]
    if code == "invalid_request":
        assert set(body) == {"detail", "code", "errors"}
        assert all(set(each) == {"field", "message"} for each in body["errors"])
        assert all(isinstance(each["message"], str) and each["message"] for each in body["errors"])
        if fields:
            assert {each["field"] for each in body["errors"]} == set(fields), body
    return body

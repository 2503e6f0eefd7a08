"""What must stay secret is in no log, no error and no metric, whether things go well or not."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import redis
from sqlalchemy import make_url

from db.accounts.api_keys import create_key
from db.ledger.adjustments import adjust
from db.postgres.engine import transaction
from metering.runtime.clock import system_clock
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.sandbox import StripeSandbox
from metering.sandbox.stripe.signatures import signature_header
from tests.conftest import Database
from tests.spine.billing import event, prepare, price, push
from tests.waiting import wait_until
from workers.stream import backlog

STRIPE_KEY = "sk_test_Recognisable0Stripe0Key"
WEBHOOK_SECRET = "whsec_Recognisable0Webhook0Secret"  # noqa: S105 - made up for this test, like those that follow
DATABASE_PASSWORD = "Recognisable0Database0Password"  # noqa: S105
REDIS_PASSWORD = "Recognisable0Redis0Password"  # noqa: S105
TELEPHONY_TOKEN = "Recognisable0Telephony0Token"  # noqa: S105
OPERATOR_TOKEN = "Recognisable0Operator0Token"  # noqa: S105
WRONG_KEY = "sk_live_Recognisable0Wrong0Key"
LIMIT_S = 60


@dataclass
class Installation:
    """Roles as processes, on servers whose addresses hold recognisable passwords; and all that they have said."""

    settings: dict[str, str]
    log_dir: Path
    secrets: set[str]
    said: list[str] = field(default_factory=list)
    """Metrics, and answers to clients that are errors."""
    _processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @contextmanager
    def started(self, name: str, *arguments: str, **settings: str) -> Iterator[Path]:
        """Run `metering ...` in the background; give its log."""
        log = self.log_dir / f"{name}-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "metering", *arguments],
                env=os.environ | self.settings | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        try:
            yield log
        finally:
            process.terminate()
            process.wait(LIMIT_S)

    def run(self, *arguments: str, **settings: str) -> str:
        """Run `metering ...` to its end, whatever that is; give what it said."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "metering", *arguments],
            env=os.environ | self.settings | settings,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        self.said += (done.stdout, done.stderr)
        return done.stdout + done.stderr

    def ask(self, method: str, url: str, key: str, **request: Any) -> httpx.Response:
        """Ask the API; what it refuses is kept. Of what it grants, the client's secrets are noted: they are his alone."""
        answer = httpx.request(
            method, url, headers={"Authorization": f"Bearer {key}", **request.pop("headers", {})}, **request
        )
        if answer.is_success:
            self.secrets |= set(re.findall(r"(?:pi|seti)_\w+_secret_\w+", answer.text))
        elif answer.status_code != 402:  # that one tells its client's secret on purpose
            self.said.append(answer.text)
        return answer

    def found(self) -> list[tuple[str, str]]:
        """Secrets that were said, each with where it stands."""
        texts = [*self.said, *(log.read_text(errors="replace") for log in sorted(self.log_dir.iterdir()))]
        return [
            (secret, text[max(text.index(secret) - 200, 0) :][:400])
            for text in texts
            for secret in self.secrets
            if secret in text
        ]


def said_at(log: Path, event_name: str) -> dict[str, Any]:
    """The first line of a log with this event, once it is there."""

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines() if f'"{event_name}"' in line]

    wait_until(lines, limit_s=LIMIT_S)
    return lines()[0]


@pytest.fixture
def sandbox() -> Iterator[StripeSandbox]:
    with StripeSandbox(api_keys=[STRIPE_KEY], webhook_secrets=[WEBHOOK_SECRET]) as started:
        yield started


@pytest.fixture
def installation(database: Database, redis_url: str, sandbox: StripeSandbox, tmp_path: Path) -> Installation:
    (tmp_path / "logs").mkdir()
    address = make_url(database.url).set(drivername="postgresql", password=DATABASE_PASSWORD)
    socket_path = urlsplit(redis_url).path
    settings = {
        "METERING_DATABASE_URL": address.render_as_string(hide_password=False),
        "METERING_REDIS_URL": f"unix://default:{REDIS_PASSWORD}@{quote(socket_path)}?db=0",
        "METERING_HTTP_PORT": "0",
        "METERING_METRICS_PORT": "0",
        "METERING_TELEPHONY_TOKEN": TELEPHONY_TOKEN,
        "METERING_OPERATOR_TOKEN": OPERATOR_TOKEN,
        "STRIPE_API_KEY": STRIPE_KEY,
        "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "STRIPE_API_BASE": sandbox.url,
    }
    secrets = {
        *(STRIPE_KEY, WEBHOOK_SECRET, DATABASE_PASSWORD, REDIS_PASSWORD, TELEPHONY_TOKEN),
        *(OPERATOR_TOKEN, WRONG_KEY, "last4", "fingerprint", "4242424242424242"),
    }
    return Installation(settings, tmp_path / "logs", secrets)


@pytest.mark.long
def test_nothing_secret_is_said_when_things_go_well_and_when_they_fail(
    installation: Installation, database: Database, redis_client: redis.Redis, sandbox: StripeSandbox
) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    with transaction(database.engine) as connection:
        key = create_key(connection, 1, system_clock()).api_key
        adjust(connection, 1, amount_cents=500, reason="x", key="x")
    installation.secrets.add(key)
    with ExitStack() as stack:
        logs = {
            name: stack.enter_context(installation.started(name, name, "--verbose"))
            for name in ("api", "jobs", "meter")
        }
        url = said_at(logs["api"], "the API is served")["url"]
        be_a_customer(installation, url, key, sandbox)
        push(redis_client, [event(duration_seconds=60_000), event(call_id=2), b"{", event(org_id=9)])
        wait_until(lambda: backlog(redis_client).length == 0, limit_s=LIMIT_S)
        receive_webhooks(installation, url, sandbox)

        # Stripe fails in every way, and then takes the key no more.
        for fault in (RequestFault.ERROR_BEFORE, RequestFault.FORBIDDEN, RequestFault.CONFLICT):
            sandbox.set_fault(fault, count=6)
            installation.ask("POST", f"{url}/v1/billing/top-up", key, json={"amount_cents": 700})
        sandbox.clear_faults()
        sandbox.rotate_api_key()
        for path in ("top-up", "setup-intent"):
            body = {"json": {"amount_cents": 800}} if path == "top-up" else {}
            assert installation.ask("POST", f"{url}/v1/billing/{path}", key, **body).status_code == 502
        wait_until(
            lambda: "undecided" in metrics(logs["jobs"]) or "401" in logs["jobs"].read_text(), limit_s=LIMIT_S
        )
        installation.said += [metrics(log) for log in logs.values()]
    assert "metering_http_requests_total" in "".join(installation.said)
    assert all(log.stat().st_size for log in logs.values())
    assert any("_secret_" in secret for secret in installation.secrets)
    assert installation.found() == []


def be_a_customer(installation: Installation, url: str, key: str, sandbox: StripeSandbox) -> None:
    """Save a card, top up, be declined, be asked for 3DS, ask with wrong keys and wrong words."""
    ask, billing = installation.ask, f"{url}/v1/billing"
    intent = ask("POST", f"{billing}/setup-intent", key).json()
    method = sandbox.confirm_setup(intent["setup_intent_id"], card="pm_card_visa")
    assert ask(
        "POST", f"{billing}/default-payment-method", key, json={"payment_method_id": method}
    ).is_success
    settings = {
        "auto_reload_enabled": True,
        "auto_reload_minimum_cents": 100,
        "auto_reload_amount_cents": 5_000,
    }
    assert ask("PATCH", billing, key, json=settings).is_success
    assert ask("POST", f"{billing}/top-up", key, json={"amount_cents": 2_000}).status_code == 201
    sandbox.fail_card(method)
    assert ask("POST", f"{billing}/top-up", key, json={"amount_cents": 600}).status_code == 402
    sandbox.mend_card(method)
    for wrong in (WRONG_KEY, TELEPHONY_TOKEN, STRIPE_KEY, OPERATOR_TOKEN):
        assert ask("GET", billing, wrong).status_code == 401
    assert ask("GET", f"{url}/v1/gate/1", TELEPHONY_TOKEN).is_success
    assert ask("GET", f"{url}/v1/gate/1", OPERATOR_TOKEN).status_code == 401
    for body in (f'{{"{key}": "{STRIPE_KEY}"}}', f'"{key}"', "{"):
        refused = ask(
            "POST", f"{billing}/top-up", key, content=body, headers={"Content-Type": "application/json"}
        )
        assert refused.status_code == 400
        # What he sent himself may come back to him, and to nobody else.
        installation.said[-1] = installation.said[-1].replace(key, "").replace(STRIPE_KEY, "")
    for path in (f"/v1/{key}", f"/v1/billing/transactions?limit={WRONG_KEY}", f"/v1/gate/{WRONG_KEY}"):
        ask("GET", url + path, key)
        installation.said[-1] = installation.said[-1].replace(key, "").replace(WRONG_KEY, "")


def receive_webhooks(installation: Installation, url: str, sandbox: StripeSandbox) -> None:
    """Real ones, forged ones, and ones that make no sense."""
    now = int(system_clock().timestamp())
    card = {"id": "pm_x", "object": "payment_method", "card": {"last4": "4242", "fingerprint": "f"}}
    thing = {
        "id": "evt_1",
        "object": "event",
        "type": "payment_method.detached",
        "created": now,
        "livemode": False,
    }
    body = json.dumps(thing | {"data": {"object": card}}).encode()
    for content, signature in (
        (body, signature_header(body, [WEBHOOK_SECRET], now)),
        (body, signature_header(body, [WEBHOOK_SECRET], now - 900)),
        (body, f"t={now},v1={WEBHOOK_SECRET}"),
        (b"4242424242424242", signature_header(b"4242424242424242", [WEBHOOK_SECRET], now)),
        (b'{"data":{"last4":"4242"}}', signature_header(b'{"data":{"last4":"4242"}}', [WEBHOOK_SECRET], now)),
    ):
        answer = httpx.post(
            f"{url}/v1/stripe/webhook", content=content, headers={"Stripe-Signature": signature}
        )
        assert answer.status_code in {200, 400}
        installation.said.append(answer.text)


def metrics(log: Path) -> str:
    """What a role tells Prometheus."""
    return httpx.get(said_at(log, "metrics are served")["url"]).text


UNREACHABLE: list[Mapping[str, str]] = [
    {"METERING_DATABASE_URL": f"postgresql://metering_app:{DATABASE_PASSWORD}@127.0.0.1:1/metering"},
    {"METERING_DATABASE_URL": f"postgresql://metering_app:{DATABASE_PASSWORD}@host/met@ering"},
    {"METERING_DATABASE_URL": f"postgresql://metering_app:{DATABASE_PASSWORD}@[::1/metering"},
    {"METERING_DATABASE_URL": f"mysql://metering_app:{DATABASE_PASSWORD}@host/metering"},
    {"METERING_REDIS_URL": f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0"},
    {"METERING_REDIS_URL": f"redis://nobody:{REDIS_PASSWORD}@[::1/0"},
    {"METERING_REDIS_URL": f"http://:{REDIS_PASSWORD}@127.0.0.1:1/0"},
    {"METERING_TELEPHONY_TOKEN": f"{TELEPHONY_TOKEN} and more"},
    {"STRIPE_API_KEY": "Recognisable0Stripe0Key"},
    {"STRIPE_API_KEY": f"{STRIPE_KEY} "},
    {"STRIPE_WEBHOOK_SECRET": f"{WEBHOOK_SECRET} x"},
    {"STRIPE_API_BASE": f"http://user:{STRIPE_KEY}@127.0.0.1:1"},
]


@pytest.mark.long
def test_no_error_of_a_command_quotes_a_secret(installation: Installation) -> None:
    installation.secrets |= {"Recognisable0"}
    for settings in UNREACHABLE:
        command = ("audit", "--stripe") if "STRIPE" in str(settings.keys()) else ("status",)
        assert installation.run(*command, **settings), settings
    assert installation.found() == []


def test_roles_that_wait_for_their_servers_do_not_say_the_passwords(installation: Installation) -> None:
    installation.secrets |= {"Recognisable0"}
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(installation.started(name, name, "--verbose", **UNREACHABLE[0]))
            for name in ("meter", "jobs", "api")
        ]
        without_redis = stack.enter_context(installation.started("meter", "meter", **UNREACHABLE[4]))
        for log in waiting:
            said_at(log, "waiting for Postgres")
        said_at(without_redis, "outage: trying again after a back-off")
    assert installation.found() == []


def test_a_secret_that_is_said_would_be_found(installation: Installation) -> None:
    (installation.log_dir / "x.log").write_text(f"connecting to redis://:{REDIS_PASSWORD}@host\n")
    installation.said.append(f"no such key: {WRONG_KEY}")
    assert {secret for secret, _ in installation.found()} == {REDIS_PASSWORD, WRONG_KEY}

"""Each alert is fired once for real: roles that run, a Prometheus that scrapes them, and what is wrong brought about and mended.

`make fire-alerts` runs it and prints what was seen; tests/monitoring/fired.txt keeps what it printed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest
import redis
from sqlalchemy import make_url

from db.accounts.api_keys import create_key
from db.ledger.adjustments import adjust
from db.postgres.engine import transaction
from metering.runtime.clock import system_clock
from metering.runtime.names import STREAM
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET, StripeSandbox
from metering.signals.holds import Holds
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.deploy.stack import free_port
from tests.deploy.test_alerts import RULES
from tests.hostile.test_secrets import said_at
from tests.monitoring.prometheus import Prometheus, now_text, prometheus, promtool
from tests.monitoring.quickened import quickened
from tests.spine.billing import prepare, price, push
from tests.waiting import wait_until

LIMIT_S: Final = 120.0
ORGS: Final = range(1, 7)
STRIPE_KEY: Final = "sk_test_alerts"


@dataclass
class Site:
    """An installation that is watched."""

    folder: Path
    cli: Cli
    database: Database
    client: redis.Redis
    sandbox: StripeSandbox
    ports: dict[str, int]
    url: str = ""
    keys: dict[int, str] = field(default_factory=dict)
    server: Prometheus = field(default_factory=lambda: Prometheus(""))
    seen: list[str] = field(default_factory=list)

    @contextmanager
    def role(self, name: str, **settings: str) -> Iterator[None]:
        """Run a role for the time of the block."""
        number = len(list(self.folder.glob(f"{name}*.log")))
        own = {"METERING_METRICS_PORT": str(self.ports[name]), "METERING_HTTP_PORT": str(self.ports["http"])}
        log = self.folder / f"{name}{number}.log"
        with Cli({**self.cli.settings, **own, **settings}).logging_to(log, name):
            said_at(log, "metrics are served")
            if name == "api":
                said_at(log, "the API is served")
            yield

    def execute(self, statement: str) -> None:
        """As superuser: for damage that nobody else can do."""
        url = make_url(self.database.admin_url).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(statement.encode())

    def ask(self, method: str, path: str, org_id: int = 1, **options: Any) -> int:
        headers = {"Authorization": f"Bearer {self.keys[org_id]}"}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, **options).status_code

    def fires(self, name: str) -> None:
        """Wait until an alert fires, and note it."""
        wait_until(lambda: self.server.firing(name), limit_s=LIMIT_S, every_s=0.5)
        alert = self.server.firing(name)
        self.note(f"{name} FIRING: {alert.summary if alert else ''}")

    def ends(self, *names: str) -> None:
        """Wait until alerts fire no more."""
        for name in names:
            wait_until(lambda each=name: self.server.firing(each) is None, limit_s=LIMIT_S, every_s=0.5)  # type: ignore[misc]
            self.note(f"{name} resolved")

    def note(self, what: str) -> None:
        self.seen.append(what)
        print(f"{now_text()} {what}", flush=True)  # noqa: T201 - the record

    @contextmanager
    def going_on(self, work: Callable[[], object], every_s: float = 0.2) -> Iterator[None]:
        """Do something again and again in the background."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(every_s):
                work()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.fixture
def site(database: Database, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Site]:
    prepare(database.engine, org_ids=ORGS, prices=[price("bolt", "0.08")])
    with StripeSandbox(api_keys=[STRIPE_KEY], webhook_secrets=[WEBHOOK_SECRET]) as sandbox:
        settings = {
            "METERING_DATABASE_URL": database.url,
            "METERING_REDIS_URL": redis_url,
            "STRIPE_API_KEY": STRIPE_KEY,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "STRIPE_API_BASE": sandbox.url,
        }
        ports = {name: free_port() for name in ("meter", "jobs", "api", "http")}
        site = Site(tmp_path, Cli(settings), database, redis_client, sandbox, ports)
        site.url = f"http://127.0.0.1:{ports['http']}"
        with transaction(database.engine) as connection:
            for org_id in ORGS:
                site.keys[org_id] = create_key(connection, org_id, system_clock()).api_key
                adjust(connection, org_id, amount_cents=1_000, reason="x", key="x")
        targets = {name: [ports[name]] for name in ("meter", "jobs", "api")}
        with prometheus(tmp_path / "prometheus", targets, rules=quickened()) as server:
            site.server = server
            yield site


@pytest.mark.long
@pytest.mark.fired
@pytest.mark.timeout(1_500)
def test_each_alert_fires_and_ends(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled(), ExitStack() as stack:
        print()  # noqa: T201
        stack.enter_context(site.role("jobs"))
        stack.enter_context(site.role("api"))
        calls_wait_and_a_role_is_down(site, stack)
        for name in ("meter", "jobs", "api"):
            promtool("check", "metrics", stdin=httpx.get(f"http://127.0.0.1:{site.ports[name]}/metrics").text)
        site.note("promtool check metrics: meter, jobs, api")
        save_cards(site)
        events_are_rejected(site)
        calls_lapse(site)
        the_ledger_is_wrong(site)
        nobody_audits(site)
        valkey_is_nearly_full(site)
        clocks_differ(site)
        webhooks_fail(site)
        not_booked(site)
        reloads_are_paused(site)
        stripe_is_away(site)
        reloads_are_held_by_pace(site)
        another_account(site)
        postgres_is_away(site)
    told = {each.partition(" ")[0] for each in site.seen if "FIRING" in each}
    assert told == {rule["alert"] for rule in RULES}
    assert {each.partition(" ")[0] for each in site.seen if "resolved" in each} == told


def calls_wait_and_a_role_is_down(site: Site, stack: ExitStack) -> None:
    """No meter runs, and a call has waited for two minutes."""
    earlier_ms = int((time.time() - 120) * 1_000)
    site.client.xadd(STREAM, {"event": b'{"call_id":1}'}, id=f"{earlier_ms}-1")
    site.fires("MeteringRoleDown")
    site.fires("MeteringCallsWait")
    stack.enter_context(site.role("meter"))
    site.ends("MeteringRoleDown", "MeteringCallsWait")


def events_are_rejected(site: Site) -> None:
    """A call that is no JSON."""
    with site.going_on(lambda: push(site.client, [b"{"]), every_s=1):
        site.fires("MeteringEventsRejected")
    site.ends("MeteringEventsRejected")


def calls_lapse(site: Site) -> None:
    """A call is held for a second, and its event doesn't come."""
    holds = Holds(site.client)
    wait_until(lambda: holds.start(6, 77, 8, 1).hold is not None, limit_s=LIMIT_S)  # once its gate is there
    site.fires("MeteringCallsLapsed")
    assert holds.dismiss(6, 77) is not None
    site.ends("MeteringCallsLapsed")


def save_cards(site: Site) -> None:
    """Each org has a card at Stripe."""
    for org_id in ORGS:
        headers = {"Authorization": f"Bearer {site.keys[org_id]}"}
        made = httpx.post(f"{site.url}/v1/billing/setup-intent", headers=headers, timeout=60).json()
        method = site.sandbox.confirm_setup(made["setup_intent_id"], card="pm_card_visa")
        body = {"payment_method_id": method}
        assert site.ask("POST", "/v1/billing/default-payment-method", org_id, json=body) < 300


AUDIT_NOW: Final = (
    "UPDATE audit_passes SET started_at = now() - interval '1 day', lease_until = now() - interval '1 s'"
)
"""As if it were time for the next pass."""


def the_ledger_is_wrong(site: Site) -> None:
    """A balance is not the sum of the org's transactions."""
    site.execute("UPDATE accounts SET balance_cents = balance_cents + 1 WHERE org_id = 6")
    site.execute(AUDIT_NOW)
    site.fires("MeteringInvariantBroken")
    site.execute("UPDATE accounts SET balance_cents = balance_cents - 1 WHERE org_id = 6")
    site.execute(AUDIT_NOW)
    site.ends("MeteringInvariantBroken")


def nobody_audits(site: Site) -> None:
    """Somebody holds the right to audit, and doesn't."""
    site.execute(
        "UPDATE audit_passes SET finished_at = now() - interval '3 days', started_at = now() - interval '3 days',"
        " lease_until = now() + interval '1 day'"
    )
    site.fires("MeteringNotAudited")
    site.fires("MeteringLedgerNotAuditedWhole")
    site.execute(AUDIT_NOW)
    site.ends("MeteringNotAudited", "MeteringLedgerNotAuditedWhole")


def valkey_is_nearly_full(site: Site) -> None:
    """It may hold little more than it does."""
    used = site.client.info("memory")["used_memory"]
    site.client.config_set("maxmemory", int(used * 1.15))
    site.fires("MeteringValkeyNearlyFull")
    site.client.config_set("maxmemory", 0)
    site.ends("MeteringValkeyNearlyFull")


def clocks_differ(site: Site) -> None:
    """Postgres's clock is wrong."""
    clock = "CREATE OR REPLACE FUNCTION metering_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS $$ {} $$"
    right = "SELECT pg_catalog.date_trunc('milliseconds', pg_catalog.clock_timestamp())"
    site.execute(clock.format(f"{right} + interval '45 s'"))
    site.fires("MeteringClocksDiffer")
    site.execute(clock.format(right))
    site.ends("MeteringClocksDiffer")


def webhooks_fail(site: Site) -> None:
    """They are signed with another secret."""
    forged = {"Stripe-Signature": f"t={int(time.time())},v1=00"}
    with site.going_on(
        lambda: httpx.post(f"{site.url}/v1/stripe/webhook", content=b"{}", headers=forged, timeout=60)
    ):
        site.fires("MeteringWebhooksFail")
    site.ends("MeteringWebhooksFail")


def not_booked(site: Site) -> None:
    """Somebody takes payments in Stripe's dashboard, of which nobody here knows."""
    customers = dict(rows(site, "SELECT org_id, stripe_customer_id FROM accounts"))
    site.sandbox.set_webhook(f"{site.url}/v1/stripe/webhook", secrets=[WEBHOOK_SECRET])
    with site.going_on(lambda: site.sandbox.pay_in_dashboard(customers[5], 700), every_s=2):
        site.fires("MeteringStripeNotBooked")
    site.sandbox.set_webhook(None)
    site.ends("MeteringStripeNotBooked")


def rows(site: Site, query: str) -> list[Any]:
    url = make_url(site.database.admin_url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        return connection.execute(query.encode()).fetchall()


def enable(
    site: Site, org_id: int, *, enabled: bool, minimum_cents: int = 2_000, amount_cents: int = 5_000
) -> None:
    body = {
        "auto_reload_enabled": enabled,
        "auto_reload_minimum_cents": minimum_cents,
        "auto_reload_amount_cents": amount_cents,
    }
    assert site.ask("PATCH", "/v1/billing", org_id, json=body) == 200


def reloads_are_paused(site: Site) -> None:
    """The bank declines four cards of four."""
    methods = dict(rows(site, "SELECT org_id, default_payment_method_id FROM accounts"))
    for org_id in (1, 2, 3, 4):
        site.sandbox.fail_card(methods[org_id], decline_code="insufficient_funds")
        enable(site, org_id, enabled=True)
    site.fires("MeteringReloadsPaused")
    for org_id in (1, 2, 3, 4):
        site.sandbox.mend_card(methods[org_id])
        enable(site, org_id, enabled=False)
    site.ends("MeteringReloadsPaused")


def stripe_is_away(site: Site) -> None:
    """It answers 500 to everything, for more than a day."""
    site.sandbox.set_fault(RequestFault.ERROR_BEFORE, count=None)
    with site.going_on(lambda: site.ask("POST", "/v1/billing/setup-intent", 6)):
        site.fires("MeteringStripeUndecided")
    enable(site, 5, enabled=True)
    wait_until(
        lambda: rows(
            site,
            "SELECT 1 FROM payment_attempts WHERE org_id = 5 AND status = 'open' AND last_sent_at IS NOT NULL",
        ),
        limit_s=LIMIT_S,
    )
    site.execute(
        "UPDATE payment_attempts SET created_at = now() - interval '28 h', first_sent_at = now() - interval '28 h',"
        " last_sent_at = now() - interval '28 h', look_at = now() + interval '2 min' WHERE org_id = 5 AND status = 'open'"
    )
    site.execute(
        "UPDATE stripe_cursors SET read_at = now() - interval '1 h', position = now() - interval '1 h'"
    )
    site.fires("MeteringStripeEventsNotRead")
    site.fires("MeteringAttemptsStayOpen")
    site.fires("MeteringAttemptNotEnded")
    site.sandbox.clear_faults()
    site.execute("UPDATE payment_attempts SET look_at = now(), in_hand_until = NULL WHERE status = 'open'")
    site.ends(
        "MeteringStripeEventsNotRead",
        "MeteringAttemptsStayOpen",
        "MeteringAttemptNotEnded",
        "MeteringStripeUndecided",
    )
    enable(site, 5, enabled=False)


def reloads_are_held_by_pace(site: Site) -> None:
    """Five orgs reload by so little that five reloads in a row don't reach the minimum."""
    orgs = (1, 2, 3, 4, 6)
    for org_id in orgs:
        enable(site, org_id, enabled=True, minimum_cents=100_000, amount_cents=50)
    site.fires("MeteringReloadsHeldByPace")
    for org_id in orgs:
        enable(site, org_id, enabled=False)
    site.ends("MeteringReloadsHeldByPace")


def another_account(site: Site) -> None:
    """STRIPE_API_KEY is another account's, which has none of the customers."""
    other = site.sandbox.open_account().api_key
    again = dict(site.ports)
    site.ports |= {"api": free_port(), "http": free_port()}
    url, site.url = site.url, f"http://127.0.0.1:{site.ports['http']}"
    targets = {"meter": [site.ports["meter"]], "jobs": [site.ports["jobs"]], "api": [site.ports["api"]]}
    with (
        site.role("api", STRIPE_API_KEY=other),
        prometheus(site.folder / "second", targets, rules=quickened()) as server,
    ):
        first, site.server = site.server, server
        wait_until(lambda: server.up() == 3, limit_s=LIMIT_S, every_s=0.5)
        time.sleep(3)  # a counter has to be seen before it rises
        for org_id in ORGS:
            site.ask("POST", "/v1/billing/setup-intent", org_id)
        site.fires("MeteringStripeRefuses")
        site.fires("MeteringStripeCustomersMissing")
        site.ends("MeteringStripeRefuses", "MeteringStripeCustomersMissing")
        site.server = first
    site.ports, site.url = again, url


def postgres_is_away(site: Site) -> None:
    """It lets nobody in."""
    name = make_url(site.database.url).database
    admin = make_url(site.database.admin_url).set(drivername="postgresql", database="postgres")
    with psycopg.connect(admin.render_as_string(hide_password=False), autocommit=True) as connection:

        def let_in(allowed: str) -> None:
            connection.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}".encode())

        let_in("false")
        connection.execute(
            b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            with site.going_on(lambda: site.ask("GET", "/v1/billing")):
                site.fires("MeteringApiFails")
                site.fires("MeteringGatesNotSwept")
        finally:
            let_in("true")
    site.ends("MeteringApiFails", "MeteringGatesNotSwept")

"""A sandbox on disk outlives its process, however that ends."""

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.remote import control
from metering.sandbox.stripe.sandbox import API_KEY, StripeSandbox
from tests.payments.world import MovableClock
from tests.sandbox.stripe import sdk_types, stripe_examples
from tests.sandbox.stripe.processes import SandboxProcess
from tests.sandbox.stripe.receiver import Receiver
from tests.sandbox.stripe.shop import Shop


def _client(url: str) -> stripe.StripeClient:
    return stripe.StripeClient(API_KEY, base_addresses={"api": url}, max_network_retries=0)


def _charge(client: stripe.StripeClient, key: str) -> stripe.PaymentIntent:
    return client.v1.payment_intents.create(
        {
            "amount": 700,
            "currency": "usd",
            "payment_method": "pm_card_visa",
            "confirm": True,
            "allowed_payment_method_types": ["card"],
            "return_url": "https://example.com",
        },
        {"idempotency_key": key},
    )


def test_a_killed_sandbox_forgets_nothing_and_is_back_on_its_port(tmp_path: Path, taker: Receiver) -> None:
    taker.answer = lambda _: 500  # nobody takes its webhooks yet
    path = tmp_path / "stripe" / "objects.db"
    with SandboxProcess(path, webhook_url=taker.url) as first:
        client = _client(first.url)
        paid = _charge(client, "k")
        events = [event.id for event in client.v1.events.list().data]
        first.kill()
        with pytest.raises(stripe.APIConnectionError):
            client.v1.balance.retrieve()
        taker.deliveries.clear()
        taker.answer = lambda _: 200
        with SandboxProcess(path, port=first.port, webhook_url=taker.url) as second:
            assert second.url == first.url
            assert client.v1.payment_intents.retrieve(paid.id).to_dict() == paid.to_dict()
            assert [event.id for event in client.v1.events.list().data] == events
            assert _charge(client, "k").id == paid.id
            assert control(second.url, "totals")["charges"] == 1
            assert control(second.url, "wait_delivered", limit_s=10)
            assert {each.event("whsec_sandbox")["id"] for each in taker.deliveries} == set(events)
            assert second.stop() == ""  # nothing is written to standard output


def test_lists_keep_their_order_and_look_ups_their_index(tmp_path: Path, clock: MovableClock) -> None:
    path = tmp_path / "objects.db"
    with StripeSandbox(path, clock=clock) as sandbox:
        shop = Shop(sandbox, _client(sandbox.url))
        made = [shop.pay().id for _ in range(3)][::-1]
        refund = sandbox.refund(made[0])
        sandbox.fail_card(shop.method)
    clock.move(hours=1)
    with StripeSandbox(path, clock=clock) as sandbox:
        client = _client(sandbox.url)
        intents = client.v1.payment_intents.list({"customer": shop.customer})
        assert [each.id for each in intents.data] == made
        assert [each.id for each in client.v1.refunds.list({"payment_intent": made[0]}).data] == [
            refund["id"]
        ]
        shop.client, shop.sandbox = client, sandbox
        assert shop.decline()["code"] == "card_declined"
        assert shop.net() == 4_000
        sandbox.mend_card(shop.method)
        newest = shop.pay().id
        assert client.v1.payment_intents.list({"limit": 1}).data[0].id == newest


OLDER = Path(__file__).with_name("objects_layout_1.json")
"""What a sandbox of 28 November 2026 kept: a payment that was refunded in part, one that is disputed, and their events."""


def _write(path: Path, kept: dict[str, list[dict[str, Any]]]) -> None:
    """A file as that version left it."""
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE objects (id TEXT PRIMARY KEY, position INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE answers (key TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, created INTEGER NOT NULL,"
        " status INTEGER NOT NULL, body BLOB NOT NULL, request_id TEXT NOT NULL) WITHOUT ROWID;"
        "PRAGMA user_version = 1"
    )
    objects = [(each["id"], each["position"], json.dumps(each["body"]).encode()) for each in kept["objects"]]
    connection.executemany("INSERT INTO objects VALUES (?, ?, ?)", objects)
    for each in kept["answers"]:
        changes = {
            "fingerprint": bytes.fromhex(each["fingerprint"]),
            "body": json.dumps(each["body"]).encode(),
        }
        connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", tuple((each | changes).values()))
    connection.commit()
    connection.close()


def test_a_file_of_an_earlier_version_is_read_and_shown_as_of_today(tmp_path: Path) -> None:
    path = tmp_path / "objects.sqlite"
    kept = json.loads(OLDER.read_text())
    _write(path, kept)
    with StripeSandbox(path) as sandbox:
        client = _client(sandbox.url)
        customer = client.v1.customers.list().data[0]
        (holding,) = sandbox.holdings().values()
        assert (holding.received_cents, holding.refunded_cents, holding.disputed_cents) == (5_000, 500, 3_000)
        made = client.v1.customers.create({"email": "someone@example.com"}, {"idempotency_key": "made"})
        assert made.id == customer.id
        found: list[str] = []
        for name in ("charges", "payment_intents", "refunds", "disputes", "setup_intents", "events"):
            for each in getattr(client.v1, name).list().data:
                shown = each.to_dict()
                told = shown["data"]["object"] if name == "events" else shown
                found += sdk_types.of_object(shown, type(each), shown["object"], [])
                found += stripe_examples.differences(
                    told, stripe_examples.examples()[told["object"]], told["object"], []
                )
        assert set(found) == {"charge.refunds: missing"}
        refund = client.v1.refunds.list().data[0]
        assert refund.to_dict()["customer"] == customer.id
        assert sandbox.win_dispute(client.v1.disputes.list().data[0].id)["status"] == "won"
        paid = client.v1.payment_intents.create(
            {
                "amount": 700,
                "currency": "usd",
                "customer": customer.id,
                "payment_method": client.v1.payment_methods.list({"customer": customer.id}).data[0].id,
                "confirm": True,
                "off_session": True,
            }
        )
        assert paid.status == "succeeded"


def test_forgotten_keys_leave_the_disk(tmp_path: Path, clock: MovableClock) -> None:
    path = tmp_path / "objects.db"
    with StripeSandbox(path, clock=clock) as sandbox:
        client = _client(sandbox.url)
        client.v1.customers.create({}, {"idempotency_key": "old"})
        clock.move(hours=24)
        client.v1.customers.create({}, {"idempotency_key": "new"})
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT key FROM answers").fetchall() == [("new",)]
    connection.close()


def test_a_reset_empties_the_disk(tmp_path: Path, clock: MovableClock) -> None:
    path = tmp_path / "objects.db"
    with StripeSandbox(path, clock=clock) as sandbox:
        _charge(_client(sandbox.url), "k")
        sandbox.reset()
    with StripeSandbox(path, clock=clock) as sandbox:
        assert sandbox.totals().charges == 0
        assert _charge(_client(sandbox.url), "k").status == "succeeded"


def test_a_file_has_one_sandbox_at_a_time(
    tmp_path: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.sandbox.stripe.disk.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "objects.db"
    with (
        StripeSandbox(path, clock=clock),
        pytest.raises(sqlite3.OperationalError),
        StripeSandbox(path, clock=clock),
    ):
        pass


def test_a_port_has_one_sandbox_at_a_time(sandbox: StripeSandbox, clock: MovableClock) -> None:
    port = int(sandbox.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"), StripeSandbox(clock=clock, port=port):
        pass


def test_it_listens_on_loopback_only(sandbox: StripeSandbox) -> None:
    assert sandbox.url.startswith("http://127.0.0.1:")
    port = int(sandbox.url.rpartition(":")[2])
    with socket.socket() as other:  # another address of this machine's: nobody is there
        other.settimeout(1)
        assert other.connect_ex(("127.0.0.2", port)) != 0

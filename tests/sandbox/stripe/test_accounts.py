"""Accounts: each has its keys, and its objects are there for nobody else."""

from pathlib import Path
from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.remote import ControlError, control
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.payments.world import MovableClock
from tests.sandbox.stripe.receiver import Receiver
from tests.sandbox.stripe.shop import Shop, error_of
from tests.waiting import wait_until


def _client(sandbox: StripeSandbox, api_key: str) -> stripe.StripeClient:
    return stripe.StripeClient(api_key, base_addresses={"api": sandbox.url}, max_network_retries=0)


@pytest.fixture
def other(sandbox: StripeSandbox) -> stripe.StripeClient:
    """The client of another account, opened as another process does it."""
    return _client(sandbox, control(sandbox.url, "open_account")["api_key"])


def test_a_key_belongs_to_an_account(client: stripe.StripeClient, other: stripe.StripeClient) -> None:
    one, another = client.v1.accounts.retrieve_current(), other.v1.accounts.retrieve_current()
    assert one.id.startswith("acct_")
    assert one.id != another.id
    assert client.v1.accounts.retrieve_current().to_dict() == one.to_dict()
    assert client.v1.accounts.retrieve(one.id).to_dict() == one.to_dict()
    with pytest.raises(stripe.PermissionError) as raised:
        client.v1.accounts.retrieve(another.id)
    assert error_of(raised)["code"] == "account_invalid"


def test_what_is_one_accounts_is_missing_for_another(shop: Shop, other: stripe.StripeClient) -> None:
    paid = shop.pay()
    refund = shop.client.v1.refunds.create({"payment_intent": paid.id, "amount": 1})
    dispute = shop.sandbox.open_dispute(paid.id)
    event, transaction = (
        listed.data[0].id
        for listed in (shop.client.v1.events.list(), shop.client.v1.balance_transactions.list())
    )
    setup = shop.client.v1.setup_intents.list().data[0].id
    v1: Any = other.v1
    paying: Any = {"amount": 500, "currency": "usd", "customer": shop.customer}
    asked: list[Any] = [
        lambda: v1.customers.retrieve(shop.customer),
        lambda: v1.customers.update(shop.customer, {"name": "N"}),
        lambda: v1.customers.delete(shop.customer),
        lambda: v1.payment_methods.retrieve(shop.method),
        lambda: v1.payment_methods.detach(shop.method),
        lambda: v1.payment_methods.list({"customer": shop.customer}),
        lambda: v1.setup_intents.retrieve(setup),
        lambda: v1.setup_intents.create({"customer": shop.customer}),
        lambda: v1.payment_intents.retrieve(paid.id),
        lambda: v1.payment_intents.cancel(paid.id),
        lambda: v1.payment_intents.create(paying),
        lambda: v1.payment_intents.list({"customer": shop.customer}),
        lambda: v1.charges.retrieve(paid.latest_charge),
        lambda: v1.refunds.retrieve(refund.id),
        lambda: v1.refunds.create({"payment_intent": paid.id}),
        lambda: v1.disputes.retrieve(dispute["id"]),
        lambda: v1.events.retrieve(event),
        lambda: v1.events.list({"starting_after": event}),
        lambda: v1.balance_transactions.retrieve(transaction),
    ]
    for ask in asked:
        with pytest.raises(stripe.InvalidRequestError) as raised:
            ask()
        assert raised.value.code == "resource_missing"
    for each in ("customers", "setup_intents", "payment_intents", "charges", "refunds", "disputes", "events"):
        assert getattr(v1, each).list().data == []
    assert v1.balance_transactions.list().data == []
    assert v1.balance.retrieve().available[0].amount == 0
    assert len(shop.charges()) == 1


def test_another_account_works_like_the_first(shop: Shop, other: stripe.StripeClient) -> None:
    first = shop.events()
    theirs = Shop(shop.sandbox, other)
    paid = theirs.pay(700)
    shop.sandbox.refund(paid.id, amount_cents=200)
    shop.sandbox.win_dispute(shop.sandbox.open_dispute(theirs.pay(300).id)["id"])
    shop.sandbox.update_card(theirs.method, exp_year=2040)
    made = shop.sandbox.pay_in_dashboard(theirs.customer, 900)
    assert theirs.retrieve(made["id"]).status == "succeeded"
    assert theirs.net() == 700 - 200 + 300 + 900
    assert "payment_method.automatically_updated" in theirs.events()
    assert "charge.dispute.funds_reinstated" in theirs.events()
    shop.sandbox.delete_customer(theirs.customer)
    assert other.v1.customers.retrieve(theirs.customer).to_dict()["deleted"]
    assert shop.events() == first
    with pytest.raises(stripe.InvalidRequestError):
        shop.client.v1.customers.retrieve(theirs.customer)


def test_an_idempotency_key_is_of_one_account(
    client: stripe.StripeClient, other: stripe.StripeClient
) -> None:
    made = client.v1.customers.create({"name": "N"}, {"idempotency_key": "k"}).id
    theirs = other.v1.customers.create({"name": "M"}, {"idempotency_key": "k"}).id
    assert made != theirs
    assert client.v1.customers.create({"name": "N"}, {"idempotency_key": "k"}).id == made
    assert other.v1.customers.create({"name": "M"}, {"idempotency_key": "k"}).id == theirs


def test_each_account_settles_in_its_own_currency(
    shop: Shop, sandbox: StripeSandbox, other: stripe.StripeClient
) -> None:
    account = other.v1.accounts.retrieve_current().id
    sandbox.set_settlement("gbp", exchange_rate=0.8, account=account)
    assert other.v1.accounts.retrieve_current().default_currency == "gbp"
    assert shop.client.v1.accounts.retrieve_current().default_currency == "usd"
    shop.pay()
    Shop(sandbox, other).pay()
    found = [each.v1.balance_transactions.list().data[0].currency for each in (shop.client, other)]
    assert found == ["usd", "gbp"]
    with pytest.raises(ControlError, match="acct_none"):
        control(sandbox.url, "set_settlement", currency="eur", account="acct_none")


def test_accounts_their_keys_and_their_currency_outlive_the_process(
    tmp_path: Path, clock: MovableClock
) -> None:
    path = tmp_path / "objects.sqlite"
    with StripeSandbox(path, clock=clock) as sandbox:
        opened = sandbox.open_account(country="GB", currency="gbp")
        sandbox.set_settlement("eur", exchange_rate=0.9, fee_apart=True)
        first = _client(sandbox, sandbox.api_key).v1.accounts.retrieve_current().to_dict()
        theirs = Shop(sandbox, _client(sandbox, opened.api_key))
    assert first["default_currency"] == "eur"
    with StripeSandbox(path, clock=clock) as sandbox:
        assert _client(sandbox, sandbox.api_key).v1.accounts.retrieve_current().to_dict() == first
        again = _client(sandbox, opened.api_key)
        account = again.v1.accounts.retrieve_current()
        assert (account.id, account.country, account.default_currency) == (opened.id, "GB", "gbp")
        assert again.v1.customers.retrieve(theirs.customer).id == theirs.customer
        shop = Shop(sandbox, _client(sandbox, sandbox.api_key))
        shop.pay()
        transaction = shop.client.v1.balance_transactions.list().data[0]
        assert (transaction.currency, transaction.amount) == ("eur", 1_800)


def test_a_reset_leaves_the_first_account_alone(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    opened = sandbox.open_account()
    sandbox.set_settlement("eur")
    before = client.v1.accounts.retrieve_current()
    sandbox.reset()
    after = client.v1.accounts.retrieve_current()
    assert (after.id, after.default_currency) == (before.id, "usd")
    with pytest.raises(stripe.AuthenticationError):
        _client(sandbox, opened.api_key).v1.balance.retrieve()


def test_keys_are_changed_account_by_account(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    opened = sandbox.open_account()
    newer = sandbox.rotate_api_key(account=opened.id)
    assert _client(sandbox, newer).v1.accounts.retrieve_current().id == opened.id
    with pytest.raises(stripe.AuthenticationError):
        _client(sandbox, opened.api_key).v1.balance.retrieve()
    assert client.v1.balance.retrieve().object == "balance"
    assert sandbox.api_key != newer


def test_webhooks_are_set_account_by_account(taker: Receiver) -> None:
    with StripeSandbox() as sandbox:
        opened = sandbox.open_account()
        first, other = (_client(sandbox, key) for key in (sandbox.api_key, opened.api_key))
        sandbox.set_webhook(taker.url, secrets=["whsec_first"])
        other.v1.customers.create({"name": "untold"})
        mine = first.v1.customers.create({"name": "told"}).id
        assert sandbox.wait_delivered()
        assert [each.event("whsec_first")["data"]["object"]["id"] for each in taker.deliveries] == [mine]
        control(sandbox.url, "set_webhook", url=taker.url, secrets=["whsec_other"], account=opened.id)
        theirs = other.v1.customers.create({"name": "told"}).id
        sandbox.set_webhook(None)
        first.v1.customers.create({"name": "untold"})
        assert sandbox.wait_delivered()
        assert len(taker.deliveries) == 2
        assert taker.deliveries[1].event("whsec_other")["data"]["object"]["id"] == theirs


def test_what_waits_for_one_account_holds_up_no_other(taker: Receiver) -> None:
    taker.answer = lambda _: 500
    with StripeSandbox(webhook_url=taker.url, webhook_retry_delays_s=(0.01,) * 1_000) as sandbox:
        opened = sandbox.open_account()
        first, other = (_client(sandbox, key) for key in (sandbox.api_key, opened.api_key))
        sandbox.set_webhook(taker.url, secrets=["whsec_other"], account=opened.id)
        first.v1.customers.create({"name": "waits"})
        wait_until(lambda: taker.deliveries, limit_s=20)
        sandbox.set_webhook(None)
        theirs = other.v1.customers.create({"name": "told"}).id
        wait_until(
            lambda: theirs.encode() in b"".join(each.body for each in list(taker.deliveries)), limit_s=20
        )
        sandbox.set_webhook(None, account=opened.id)
        assert sandbox.totals().webhooks_waiting == 2


def test_nobody_acts_for_an_account_that_is_not_his(
    client: stripe.StripeClient, other: stripe.StripeClient
) -> None:
    """As with Connect, where a platform names a connected account in each request."""
    mine, theirs = (each.v1.accounts.retrieve_current().id for each in (client, other))
    assert client.v1.balance.retrieve(options={"stripe_account": mine}).object == "balance"
    with pytest.raises(stripe.PermissionError) as raised:
        client.v1.balance.retrieve(options={"stripe_account": theirs})
    assert error_of(raised)["code"] == "account_invalid"

"""Lists: pages, cursors, times; and parameters of all kinds."""

from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.payments.world import MovableClock
from tests.sandbox.stripe.shop import Shop

_MINIMUM: Any = {"amount": 500, "currency": "usd"}


def _intents(shop: Shop, count: int) -> list[str]:
    """Newest first."""
    create: Any = {**_MINIMUM, "customer": shop.customer}
    return [shop.client.v1.payment_intents.create(create).id for _ in range(count)][::-1]


def _ids(page: Any) -> list[str]:
    return [each.id for each in page.data]


def test_pages_go_both_ways(shop: Shop) -> None:
    made = _intents(shop, 5)
    intents = shop.client.v1.payment_intents
    first = intents.list({"limit": 2})
    assert (_ids(first), first.has_more, first.to_dict()["url"]) == (made[:2], True, "/v1/payment_intents")
    second = intents.list({"limit": 2, "starting_after": made[1]})
    assert (_ids(second), second.has_more) == (made[2:4], True)
    third = intents.list({"limit": 2, "starting_after": made[3]})
    assert (_ids(third), third.has_more) == (made[4:], False)
    back = intents.list({"limit": 2, "ending_before": made[4]})
    assert (_ids(back), back.has_more) == (made[2:4], True)
    whole, before = intents.list({"limit": 5}), intents.list({"limit": 2, "ending_before": made[2]})
    assert (_ids(whole), whole.has_more) == (made, False)
    assert (_ids(before), before.has_more) == (made[:2], False)


def test_the_sdk_pages_by_itself(shop: Shop) -> None:
    made = _intents(shop, 7)
    pages = shop.client.v1.payment_intents.list({"limit": 3, "customer": shop.customer})
    assert [each.id for each in pages.auto_paging_iter()] == made


def test_a_page_is_10_long_unless_it_is_told(shop: Shop) -> None:
    made = _intents(shop, 11)
    page = shop.client.v1.payment_intents.list()
    assert (_ids(page), page.has_more) == (made[:10], True)


@pytest.mark.parametrize("limit", [0, 101, -1])
def test_a_page_is_1_to_100_long(shop: Shop, limit: int) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.client.v1.payment_intents.list({"limit": limit})
    assert (raised.value.code, raised.value.param) == ("parameter_invalid_integer", "limit")


def test_a_cursor_is_an_object_of_the_list(shop: Shop) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.client.v1.payment_intents.list({"starting_after": shop.customer})
    assert (raised.value.code, raised.value.param) == ("resource_missing", "starting_after")


def test_lists_are_cut_by_time(shop: Shop, clock: MovableClock) -> None:
    made = []
    for _ in range(3):
        made += _intents(shop, 1)
        clock.move(hours=1)
    at = int(clock().timestamp()) - 2 * 3_600  # when the second was made
    ranges: Any = [{"gt": at}, {"gte": at}, {"lt": at}, {"lte": at}, at]
    listed = [_ids(shop.client.v1.payment_intents.list({"created": created})) for created in ranges]
    assert listed == [made[2:], made[:0:-1], made[:1], made[1::-1], [made[1]]]


def test_events_are_kept_for_30_days(shop: Shop, clock: MovableClock) -> None:
    shop.pay()
    (event,) = shop.client.v1.events.list({"type": "payment_intent.succeeded"}).data
    clock.move(days=30)
    assert shop.client.v1.events.retrieve(event.id).id == event.id
    assert len(shop.client.v1.events.list({"type": "payment_intent.succeeded"}).data) == 1
    clock.move(seconds=1)
    assert shop.client.v1.events.list().data == []
    with pytest.raises(stripe.InvalidRequestError):
        shop.client.v1.events.retrieve(event.id)


def test_events_are_found_by_types(shop: Shop) -> None:
    shop.pay()

    def found(**params: Any) -> list[str]:
        given: Any = params
        return [event.type for event in shop.client.v1.events.list(given).data]

    assert found(types=["charge.succeeded", "customer.created"]) == ["charge.succeeded", "customer.created"]
    assert found(type="payment_intent.*") == ["payment_intent.succeeded", "payment_intent.created"]
    with pytest.raises(stripe.InvalidRequestError):
        found(type="charge.succeeded", types=["charge.succeeded"])
    with pytest.raises(stripe.InvalidRequestError):
        found(types=[f"type.{number}" for number in range(21)])


def test_what_is_refunded_or_disputed_is_found_by_payment(shop: Shop, sandbox: StripeSandbox) -> None:
    paid, other = shop.pay(), shop.pay()
    refund, dispute = sandbox.refund(paid.id, amount_cents=1), sandbox.open_dispute(other.id)
    v1 = shop.client.v1
    assert _ids(v1.refunds.list({"payment_intent": paid.id})) == [refund["id"]]
    assert _ids(v1.refunds.list({"charge": str(other.latest_charge)})) == []
    assert _ids(v1.disputes.list({"payment_intent": other.id})) == [dispute["id"]]
    assert _ids(v1.charges.list({"payment_intent": paid.id, "customer": "cus_none"})) == []


def test_a_deleted_customer_is_in_no_list(shop: Shop) -> None:
    shop.client.v1.customers.delete(shop.customer)
    assert shop.client.v1.customers.list().data == []
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.pay()
    assert raised.value.code == "resource_missing"


def test_objects_are_expanded_in_objects_and_lists(shop: Shop) -> None:
    paid = shop.pay(expand=["latest_charge.balance_transaction", "customer", "payment_method"]).to_dict()
    assert paid["customer"]["id"] == shop.customer
    assert paid["latest_charge"]["balance_transaction"]["amount"] == 2_000
    assert paid["payment_method"]["card"]["last4"] == "4242"
    listed = shop.client.v1.payment_intents.list({"expand": ["data.latest_charge"]}).data[0].to_dict()
    assert listed["latest_charge"]["payment_intent"] == paid["id"]
    charge = shop.client.v1.charges.retrieve(paid["latest_charge"]["id"], {"expand": ["refunds"]}).to_dict()
    assert charge["refunds"]["data"] == []
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        shop.client.v1.payment_intents.retrieve(paid["id"], {"expand": ["amount"]})


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"amount": "ten"}, "parameter_invalid_integer", "amount"),
        ({"amount": ""}, "parameter_invalid_integer", "amount"),
        ({"amount": 10**30}, "parameter_invalid_integer", "amount"),
        ({"confirm": "perhaps"}, None, "confirm"),
        ({"currency": "xxx"}, None, "currency"),
        ({"customer": ""}, "parameter_invalid_empty", "customer"),
        ({"metadata": "text"}, None, "metadata"),
        ({"metadata": {"k" * 41: "v"}}, None, f"metadata[{'k' * 41}]"),
        ({"expand": "customer"}, None, "expand"),
        (
            {"automatic_payment_methods": {"enabled": True, "x": 1}},
            "parameter_unknown",
            "automatic_payment_methods[x]",
        ),
        (
            {"automatic_payment_methods": {"allow_redirects": "never"}},
            "parameter_missing",
            "automatic_payment_methods[enabled]",
        ),
        ({"off_session": True}, None, "off_session"),
    ],
)
def test_parameters_that_can_not_be_are_refused(
    client: stripe.StripeClient, params: Any, code: str | None, param: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.payment_intents.create(_MINIMUM | params)
    assert (raised.value.http_status, raised.value.code, raised.value.param) == (400, code, param)


def test_another_version_of_the_api_is_refused(sandbox: StripeSandbox) -> None:
    client = stripe.StripeClient(
        sandbox.api_key, base_addresses={"api": sandbox.url}, stripe_version="2024-06-20"
    )
    with pytest.raises(stripe.InvalidRequestError, match="API version"):
        client.v1.balance.retrieve()

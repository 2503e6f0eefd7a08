"""The objects' shapes against the SDK's own classes, which are made from Stripe's description of the API."""

from typing import Any, get_args

import pytest
import stripe

from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.sandbox.stripe.shop import Shop


def _fields(kind: type) -> dict[str, Any]:
    """The fields that the SDK knows of a class, with their types."""
    own = [each for each in kind.__mro__ if each.__module__.startswith("stripe.")]
    fields: dict[str, Any] = {}
    for each in reversed(own):
        fields |= {name: hint for name, hint in each.__annotations__.items() if not name.startswith("_")}
    return {name: hint for name, hint in fields.items() if "ClassVar" not in str(hint)}


def _differences(value: dict[str, Any], kind: type, path: str) -> list[str]:
    """What a value has that the SDK doesn't know, and what it lacks that is never null."""
    fields = _fields(kind)
    found = [f"{path}.{name}: unknown" for name in value if name not in fields]
    found += [
        f"{path}.{name}: missing"
        for name, hint in fields.items()
        if name not in value and type(None) not in get_args(hint)
    ]
    inner: dict[str, type] = getattr(kind, "_inner_class_types", {})
    for name, part in value.items():
        parts = part if isinstance(part, list) else [part]
        if name in inner:
            for each in parts:
                if isinstance(each, dict):
                    found += _differences(each, inner[name], f"{path}.{name}")
    return found


@pytest.fixture
def objects(shop: Shop, sandbox: StripeSandbox) -> list[stripe.StripeObject]:
    """One of each kind, and the kinds of a PaymentIntent."""
    v1 = shop.client.v1
    paid = shop.pay()
    refund = v1.refunds.create({"payment_intent": paid.id, "amount": 1})
    sandbox.open_dispute(paid.id)
    shop.save("pm_card_authenticationRequired")
    waiting = shop.pay(return_url="https://example.com")
    shop.decline(off_session=True)
    return [
        paid,
        waiting,
        *v1.payment_intents.list({"limit": 1}).data,
        refund,
        v1.customers.retrieve(shop.customer),
        v1.payment_methods.retrieve(shop.method),
        *v1.setup_intents.list().data,
        *v1.charges.list().data,
        *v1.disputes.list().data,
        *v1.balance_transactions.list().data,
        *v1.events.list().data,
        v1.balance.retrieve(),
    ]


def test_objects_have_the_fields_that_the_sdk_knows_and_no_others(objects: list[stripe.StripeObject]) -> None:
    kinds = {type(each).__name__ for each in objects}
    assert len(kinds) == 10
    differences = [
        each for one in objects for each in _differences(one.to_dict(), type(one), type(one).__name__)
    ]
    assert differences == []


def test_nothing_private_is_shown(objects: list[stripe.StripeObject], shop: Shop) -> None:
    shown = "".join(str(each) for each in objects)
    assert "_sandbox" not in shown
    assert "4000002760003184" not in shown


def test_nothing_is_live(objects: list[stripe.StripeObject]) -> None:
    assert [each for each in objects if each.to_dict().get("livemode", False)] == []

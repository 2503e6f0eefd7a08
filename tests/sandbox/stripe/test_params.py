"""What each endpoint takes, against the parameters that stripe-python's annotations say it has."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import stripe

from metering.sandbox.stripe.documented import fields_of, is_hash, params_of, undocumented
from metering.sandbox.stripe.endpoints import ENDPOINTS
from metering.sandbox.stripe.forms import decode_form
from metering.sandbox.stripe.params import (
    Array,
    Boolean,
    Choice,
    Gone,
    Hash,
    Integer,
    Metadata,
    Param,
    Range,
    Text,
)
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.sandbox.stripe.shop import Shop, error_of

DIFFERENCES = {
    "payment_methods.create: type is required": "the SDK can also copy a method of another account, the sandbox makes cards only",
    "payment_methods.attach: customer is required": "its alternative, customer_account, is of another kind of customers",
}
"""Where an endpoint differs from the annotations, and why."""


def _differences(param: Param, kinds: tuple[Any, ...], path: str) -> Iterator[str]:
    """Where a parameter isn't what the annotations say."""
    words = {word for kind in kinds for word in get_args(kind) if "Literal" in str(kind)}
    if isinstance(param, Hash):
        yield from _of_hash(param, kinds, path)
    elif isinstance(param, Array):
        yield from _differences(param.each, kinds, path)
    elif isinstance(param, Text):
        yield from [] if str in kinds else [f"{path} is no text"]
        yield from [f"{path} can be unset"] if "" in words and not param.unsettable else []
    elif isinstance(param, Integer):
        yield from [] if int in kinds else [f"{path} is no integer"]
    elif isinstance(param, Boolean):
        yield from [] if bool in kinds and words >= set(param.also) else [f"{path} is no boolean"]
    elif isinstance(param, Choice):
        yield from [f"{path}: {word} is unknown" for word in param.words if word not in words]
    elif isinstance(param, Metadata):
        yield from [] if "Dict[str, str]" in str(kinds) else [f"{path} is no metadata"]
    elif isinstance(param, Range):
        yield from [] if int in kinds else [f"{path} is no time"]
        yield from _of_hash(param.bounds, kinds, path)
    else:
        yield f"{path}: nobody knows what {param!r} is"


def _of_hash(param: Hash, kinds: tuple[Any, ...], path: str) -> Iterator[str]:
    hashes = [kind for kind in kinds if is_hash(kind)]
    if not hashes:
        yield f"{path} is no hash"
    required = {name for kind in hashes for name in kind.__required_keys__}
    yield from [f"{path}: {name} is required" for name in param.required ^ required]
    known = {name: found for kind in hashes for name, found in fields_of(kind).items()}
    for name, each in param.fields.items():
        inner = f"{path}[{name}]" if path.endswith("]") else f"{path}: {name}"
        if isinstance(each, Gone):
            yield from [f"{inner} is there"] if name in known else []
        elif name not in known:
            yield f"{inner} is unknown"
        else:
            yield from _differences(each, known[name], inner)


def test_endpoints_take_what_the_sdk_has() -> None:
    found = {
        each
        for endpoint in ENDPOINTS
        for each in _differences(endpoint.params, (params_of(endpoint.operation),), endpoint.operation)
    }
    assert found == DIFFERENCES.keys()


def test_the_comparison_finds_what_is_wrong() -> None:
    kinds = (params_of("payment_intents.create"),)
    required = frozenset({"amount", "currency"})
    wrong = Hash(
        {
            "colour": Text(),
            "amount": Text(),
            "currency": Integer(),
            "confirm": Choice(("yes",)),
            "metadata": Text(),
            "shipping": Hash({"name": Boolean(), "planet": Text()}),
            "confirmation_method": Gone("", ""),
        },
        required - {"amount"},
    )
    assert set(_differences(wrong, kinds, "x")) == {
        "x: amount is required",
        "x: colour is unknown",
        "x: amount is no text",
        "x: currency is no integer",
        "x: confirm: yes is unknown",
        "x: metadata is no text",
        "x: shipping: name is no boolean",
        "x: shipping: name is required",
        "x: shipping: address is required",
        "x: shipping: planet is unknown",
        "x: confirmation_method is there",
    }


@pytest.mark.parametrize(
    ("param", "documented"),
    [
        ("shipping", True),
        ("shipping[address][line1]", True),
        ("amount_details[line_items][0][quantity]", True),
        ("shipping[planet]", False),
        ("colour", False),
        ("api_key", False),  # an option of the SDK's, which isn't sent
        ("payment_method_types", False),  # gone since endive
    ],
)
def test_what_is_documented(param: str, documented: bool) -> None:
    raw = decode_form(f"amount=1&{param}=x")
    assert undocumented("payment_intents.create", raw) == (None if documented else param)


def test_what_stripe_takes_and_the_sandbox_does_not_is_said_to_be_unsupported(shop: Shop) -> None:
    asked: list[dict[str, Any]] = [
        {"shipping": {"name": "N", "address": {"line1": "1 Street"}}},
        {"payment_method_data": {"type": "paypal"}},
        {"transfer_group": "g"},
    ]
    for params in asked:
        with pytest.raises(stripe.InvalidRequestError) as raised:
            shop.pay(**params)
        error = error_of(raised)
        assert (error["code"], error["param"]) == ("unsupported_by_sandbox", next(iter(params)))
        assert "This is the sandbox, not Stripe" in error["message"]
        assert "doc_url" not in error
    assert shop.charges() == []


def test_words_that_stripe_takes_and_the_sandbox_does_not_are_unsupported(shop: Shop) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.pay(capture_method="manual")
    assert (error_of(raised)["code"], error_of(raised)["param"]) == (
        "unsupported_by_sandbox",
        "capture_method",
    )
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.pay(capture_method="never")
    assert "code" not in error_of(raised)


@pytest.mark.parametrize("params", [{"colour": "blue"}, {"payment_method_options": {"colour": {"a": "b"}}}])
def test_what_stripe_does_not_take_is_unknown(shop: Shop, params: dict[str, Any]) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.pay(**params)
    name = "colour" if "colour" in params else "payment_method_options[colour]"
    error = error_of(raised)
    assert (error["code"], error["param"]) == ("parameter_unknown", name)
    assert error["message"] == f"Received unknown parameter: {name}"


def test_a_refused_parameter_leaves_its_key_free(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.create({"tax_exempt": "exempt"}, {"idempotency_key": "k"})
    assert client.v1.customers.create({"name": "N"}, {"idempotency_key": "k"}).name == "N"
    assert sandbox.totals().executed["customers.create"] == 1

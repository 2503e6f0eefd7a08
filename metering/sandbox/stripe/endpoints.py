"""Which requests there are: each operation's name, address, parameters and what answers it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from metering.sandbox.stripe import (
    accounts,
    balance,
    charges,
    customers,
    disputes,
    events,
    payment_intents,
    payment_methods,
    refunds,
    setup_intents,
)
from metering.sandbox.stripe.params import EXPAND, Hash
from metering.sandbox.stripe.values import Json

_NOTHING: Final = Hash(EXPAND)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An operation, such as `payment_intents.create`. `answer` takes the work, the parameters and the ids in the address."""

    operation: str
    verb: str
    path: re.Pattern[str]
    params: Hash
    answer: Callable[..., Json]


def _endpoint(operation: str, request: str, answer: Callable[..., Json], params: Hash = _NOTHING) -> Endpoint:
    verb, path = request.split(" ")
    return Endpoint(operation, verb, re.compile(re.sub(r":id", r"([^/]+)", f"/v1/{path}")), params, answer)


ENDPOINTS: Final = (
    _endpoint("accounts.retrieve_current", "GET account", accounts.retrieve_current, accounts.RETRIEVE),
    _endpoint("accounts.retrieve", "GET accounts/:id", accounts.retrieve, accounts.RETRIEVE),
    _endpoint("customers.create", "POST customers", customers.create, customers.CREATE),
    _endpoint("customers.retrieve", "GET customers/:id", customers.retrieve),
    _endpoint("customers.update", "POST customers/:id", customers.update, customers.UPDATE),
    _endpoint("customers.delete", "DELETE customers/:id", customers.delete, Hash({})),
    _endpoint("customers.list", "GET customers", customers.list_customers, customers.LIST),
    _endpoint(
        "customers.payment_methods.list",
        "GET customers/:id/payment_methods",
        payment_methods.list_of_customer,
        payment_methods.LIST_OF_CUSTOMER,
    ),
    _endpoint(
        "customers.payment_methods.retrieve",
        "GET customers/:id/payment_methods/:id",
        payment_methods.retrieve_of_customer,
    ),
    _endpoint(
        "payment_methods.create", "POST payment_methods", payment_methods.create, payment_methods.CREATE
    ),
    _endpoint("payment_methods.retrieve", "GET payment_methods/:id", payment_methods.retrieve),
    _endpoint(
        "payment_methods.update", "POST payment_methods/:id", payment_methods.update, payment_methods.UPDATE
    ),
    _endpoint(
        "payment_methods.list", "GET payment_methods", payment_methods.list_methods, payment_methods.LIST
    ),
    _endpoint(
        "payment_methods.attach",
        "POST payment_methods/:id/attach",
        payment_methods.attach,
        payment_methods.ATTACH,
    ),
    _endpoint("payment_methods.detach", "POST payment_methods/:id/detach", payment_methods.detach),
    _endpoint("setup_intents.create", "POST setup_intents", setup_intents.create, setup_intents.CREATE),
    _endpoint(
        "setup_intents.retrieve", "GET setup_intents/:id", setup_intents.retrieve, setup_intents.RETRIEVE
    ),
    _endpoint("setup_intents.update", "POST setup_intents/:id", setup_intents.update, setup_intents.UPDATE),
    _endpoint("setup_intents.list", "GET setup_intents", setup_intents.list_intents, setup_intents.LIST),
    _endpoint(
        "setup_intents.confirm",
        "POST setup_intents/:id/confirm",
        setup_intents.confirm,
        setup_intents.CONFIRM,
    ),
    _endpoint(
        "setup_intents.cancel", "POST setup_intents/:id/cancel", setup_intents.cancel, setup_intents.CANCEL
    ),
    _endpoint(
        "payment_intents.create", "POST payment_intents", payment_intents.create, payment_intents.CREATE
    ),
    _endpoint(
        "payment_intents.retrieve",
        "GET payment_intents/:id",
        payment_intents.retrieve,
        payment_intents.RETRIEVE,
    ),
    _endpoint(
        "payment_intents.update", "POST payment_intents/:id", payment_intents.update, payment_intents.UPDATE
    ),
    _endpoint(
        "payment_intents.list", "GET payment_intents", payment_intents.list_intents, payment_intents.LIST
    ),
    _endpoint(
        "payment_intents.confirm",
        "POST payment_intents/:id/confirm",
        payment_intents.confirm,
        payment_intents.CONFIRM,
    ),
    _endpoint(
        "payment_intents.cancel",
        "POST payment_intents/:id/cancel",
        payment_intents.cancel,
        payment_intents.CANCEL,
    ),
    _endpoint("charges.retrieve", "GET charges/:id", charges.retrieve, charges.RETRIEVE),
    _endpoint("charges.update", "POST charges/:id", charges.update, charges.UPDATE),
    _endpoint("charges.list", "GET charges", charges.list_charges, charges.LIST),
    _endpoint("refunds.create", "POST refunds", refunds.create, refunds.CREATE),
    _endpoint("refunds.retrieve", "GET refunds/:id", refunds.retrieve, refunds.RETRIEVE),
    _endpoint("refunds.update", "POST refunds/:id", refunds.update, refunds.UPDATE),
    _endpoint("refunds.list", "GET refunds", refunds.list_refunds, refunds.LIST),
    _endpoint("disputes.retrieve", "GET disputes/:id", disputes.retrieve, disputes.RETRIEVE),
    _endpoint("disputes.update", "POST disputes/:id", disputes.update, disputes.UPDATE),
    _endpoint("disputes.close", "POST disputes/:id/close", disputes.close),
    _endpoint("disputes.list", "GET disputes", disputes.list_disputes, disputes.LIST),
    _endpoint("events.retrieve", "GET events/:id", events.retrieve, events.RETRIEVE),
    _endpoint("events.list", "GET events", events.list_events, events.LIST),
    _endpoint("balance.retrieve", "GET balance", balance.retrieve, balance.RETRIEVE),
    _endpoint("balance_transactions.retrieve", "GET balance_transactions/:id", balance.retrieve_transaction),
    _endpoint(
        "balance_transactions.list", "GET balance_transactions", balance.list_transactions, balance.LIST
    ),
)

OPERATIONS: Final = frozenset(endpoint.operation for endpoint in ENDPOINTS)


def endpoint_for(verb: str, path: str) -> tuple[Endpoint, tuple[str, ...]] | None:
    """The endpoint at an address, and the ids in it; None where there is none."""
    for endpoint in ENDPOINTS:
        if endpoint.verb == verb:
            matched = endpoint.path.fullmatch(path)
            if matched is not None:
                return endpoint, matched.groups()
    return None

"""What a demo needs before its first call: tiers, orgs of its own, their keys, and customers with cards."""

from collections.abc import Mapping
from dataclasses import dataclass

import redis
from sqlalchemy import Engine

from db.accounts.api_keys import create_key
from db.accounts.orgs import create_org
from db.ledger.adjustments import adjust
from db.ledger.prices import list_prices, set_price
from db.postgres.engine import transaction
from metering.console.errors import CommandError
from metering.console.stripe_access import StripeAccess
from metering.rules.money import MICROUSD_PER_USD, format_usd
from metering.rules.pricing import Price
from metering.runtime.clock import Clock
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.customers.cardholders import Cardholders, RealCardholders, StandInCardholders
from metering.sandbox.customers.operator_suspension import SuspensionPlan
from metering.sandbox.customers.personas import PersonaPlan, assign_personas
from metering.sandbox.customers.simulation import Customers
from metering.sandbox.telephony.calls import RATES_CENTS_PER_MINUTE
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.sandbox.telephony.simulation import OperatorCredit, Telephony
from metering.signals.gates import Gates


@dataclass(frozen=True, slots=True)
class DemoOrg:
    """An org that was made for the demo."""

    org_id: int
    name: str
    first_balance_cents: int
    role: PersonaPlan | None
    """Its customer's; None where an operator refills it."""


@dataclass(frozen=True, slots=True)
class Made:
    """The orgs of a demo, and who makes their calls."""

    telephony: Telephony
    orgs: list[DemoOrg]
    roles: dict[int, PersonaPlan]
    operator_credits: dict[int, list[OperatorCredit]]
    """What the operator does, for the orgs without a role."""
    suspension: SuspensionPlan | None
    """Of the busiest org without a role; None where there is none."""


def make_tiers(engine: Engine, clock: Clock) -> None:
    """Make the tiers that telephony's record counts with, unless they are there."""
    with transaction(engine) as connection:
        prices = list_prices(connection)
        for tier, rate_cents in RATES_CENTS_PER_MINUTE.items():
            wanted = Price(tier, None, rate_cents * MICROUSD_PER_USD // 100, 60, 60, 0, 0)
            there = [price for price in prices if price.tier == tier]
            if not there:
                set_price(connection, wanted, clock)
            elif there != [wanted]:
                raise CommandError(
                    f"Tier {tier} has other prices here than the {format_usd(rate_cents)} USD per minute that the demo"
                    " counts with: set METERING_DATA_DIR to a directory of the demo's own."
                )


def make_orgs(
    engine: Engine,
    client: redis.Redis,
    *,
    number: int,
    seed: int,
    duration_s: float,
    rate: float,
    clock: Clock,
) -> Made:
    """Orgs of this run's own, so that nothing that was there before can be taken for its work; and their gates."""
    now = clock()
    changes = []
    with transaction(engine) as connection:
        names = [f"Demo {index} of {now:%H:%M:%S}" for index in range(1, number + 1)]
        org_ids = [create_org(connection, name, now) for name in names]
        telephony = Telephony(org_ids, start=now, seed=seed, duration_s=duration_s, rate=rate)
        roles = assign_personas(org_ids, telephony.likely_cents_per_s(), duration_s)
        balances = telephony.starting_balances_cents()
        balances |= {org_id: role.start_cents for org_id, role in roles.items()}
        for org_id, cents in balances.items():
            done = adjust(
                connection,
                org_id,
                amount_cents=cents,
                reason="A balance to begin the demo with",
                key="demo-start",
            )
            changes += [done.change] if done.change else []
    Gates(client).follow([each.balance for each in changes], clock())
    orgs = [
        DemoOrg(org_id, name, balances[org_id], roles.get(org_id))
        for org_id, name in zip(org_ids, names, strict=True)
    ]
    operator_credits = {
        org_id: plan for org_id, plan in telephony.operator_credits().items() if org_id not in roles
    }
    first = next(iter(operator_credits), None)
    suspension = None if first is None else SuspensionPlan(first, 0.4 * duration_s, 0.25 * duration_s)
    return Made(telephony, orgs, roles, operator_credits, suspension)


def make_customers(
    engine: Engine,
    roles: Mapping[int, PersonaPlan],
    cardholders: Cardholders,
    listener: SignalListener,
    *,
    http_host: str,
    http_port: int,
    clock: Clock,
) -> Customers:
    """The customers of those orgs, each with a key, a card and its reload settings. Raises CustomerError."""
    with transaction(engine) as connection:
        keys = {org_id: create_key(connection, org_id, clock()) for org_id in roles}
    apis = {org_id: CustomerApi(http_port, key.api_key, http_host) for org_id, key in keys.items()}
    customers = Customers(roles, apis, cardholders, listener)
    customers.set_up()
    return customers


def cardholders_of(access: StripeAccess) -> Cardholders:
    """What stands for the customers' browsers and banks, at the Stripe that is used."""
    if access.stand_in and access.base_url is not None:
        return StandInCardholders(access.base_url)
    return RealCardholders(access.api_key, access.base_url)

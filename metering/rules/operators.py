"""What an operator's role lets him do: one table for all commands."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class OperatorRole(StrEnum):
    """What an operator may do. Each may do what those before it may."""

    READ = "read"
    """Look at everything."""
    SUPPORT = "support"
    """Do what a customer's question asks for day by day, and what can be put right again."""
    MONEY = "money"
    """Move money, set what calls cost, and say who is an operator."""

    def may(self, needed: "OperatorRole") -> bool:
        """Whether this role may do what needs `needed`."""
        order = list(OperatorRole)
        return order.index(self) >= order.index(needed)


_READ, _SUPPORT, _MONEY = OperatorRole

ROLE_NEEDED: Final[Mapping[str, OperatorRole]] = MappingProxyType(
    {
        # They change nothing, and whoever has the database's password can read it anyway: so they ask for no token. One that is
        # set must be good all the same.
        "attempt list": _READ,
        "audit": _READ,
        "call list": _READ,
        "call show": _READ,
        "key find": _READ,
        "key list": _READ,
        "log": _READ,
        "operator list": _READ,
        "org find": _READ,
        "org list": _READ,
        "org show": _READ,
        "payment list": _READ,
        "rejected list": _READ,
        "reload list": _READ,
        "status": _READ,
        "stripe-event list": _READ,
        "tier list": _READ,
        # Orgs and keys: what is wrong can be named anew, revoked, made again.
        "org create": _SUPPORT,
        "org rename": _SUPPORT,
        "key create": _SUPPORT,
        "key revoke": _SUPPORT,
        # Neither moves money: a resumed org is charged at most what the customer has asked for. Whoever answers customers by day
        # and by night must be able to stop a fraud at once.
        "org suspend": _SUPPORT,
        "org resume": _SUPPORT,
        # It keeps calls from starting, or lets them start as far as there is money.
        "org set": _SUPPORT,
        # A call costs what it costs, once, however often it is replayed.
        "rejected replay": _SUPPORT,
        # It gives up what a call costs: never more than was never billed, and a replay with --again takes it back.
        "rejected dismiss": _SUPPORT,
        # It gives up what is held, not what the call costs: its event is billed if it comes.
        "call dismiss": _SUPPORT,
        # It books what Stripe tells of, as the jobs do in their time.
        "stripe-event retry": _SUPPORT,
        # It charges the customer's card at most as the customer has asked for, within the limit of the month.
        "reload resume": _SUPPORT,
        # It makes or takes money by the word of an operator alone.
        "adjust": _MONEY,
        "refund": _MONEY,
        # With --apply; without it nothing is changed, and no token asked for.
        "reprice": _MONEY,
        # It credits an org, and may give it a customer of Stripe's for good.
        "payment book": _MONEY,
        # What it tells of is never booked.
        "stripe-event dismiss": _MONEY,
        # What all later calls cost.
        "tier set": _MONEY,
        "tier clear": _MONEY,
        "tier cancel": _MONEY,
        # Who may make operators could make himself one with any role.
        "operator add": _MONEY,
        "operator revoke": _MONEY,
    }
)
"""The role that each command of operators needs."""

NOT_OF_OPERATORS: Final = frozenset(
    {
        # They run the product, under supervisors that have no operator's token.
        "api",
        "demo",
        "jobs",
        "meter",
        "stripe-sandbox",
        "up",
        # It needs the owner of the tables, who may do anything.
        "migrate",
        # Telephony's way in, with Redis alone: there is no table of operators to ask.
        "push",
        # They try the product on servers of their own.
        "bench",
        "chaos",
    }
)
"""Commands that no operator's role is asked for."""

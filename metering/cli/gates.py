"""Letting a gate follow at once what a command committed, and asking one."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from metering.console.errors import CommandError, quoted
from metering.console.output import warn
from metering.rules.gates import Balance

if TYPE_CHECKING:
    import redis

    from metering.signals.gates import Gate
    from metering.signals.holds import HeldTotals


def follow_gate(balance: Balance, then: "Callable[[redis.Redis], None] | None" = None) -> None:
    """Bring an org's gate to its balance, and do what else is to follow.

    Where Redis can't be asked, say so: the reconcilers of the jobs will do it.
    """
    follow_gates([balance], then)


def follow_gates(balances: Sequence[Balance], then: "Callable[[redis.Redis], None] | None" = None) -> None:
    """The same for several orgs."""
    import redis

    from metering.console.connections import open_redis
    from metering.runtime.clock import system_clock
    from metering.signals.gates import Gates

    try:
        with open_redis() as client:
            Gates(client).follow(balances, system_clock())
            if then is not None:
                then(client)
    except (redis.RedisError, CommandError) as error:
        whose = (
            f"gate of org {balances[0].org_id}" if len(balances) == 1 else f"gates of {len(balances)} orgs"
        )
        warn(f"The {whose} can't follow now ({quoted(error)}); `metering jobs` mends it within seconds.")


def gate_of(org_id: int) -> "Gate | None":
    """An org's gate as Redis has it; None where Redis can't be asked, which is said."""
    import redis

    from metering.console.connections import open_redis
    from metering.signals.gates import Gates

    try:
        with open_redis() as client:
            (gate,) = Gates(client).read([org_id])
    except (redis.RedisError, CommandError) as error:
        warn(
            f"The gate of org {org_id} can't be asked now ({quoted(error)}); what is shown is what it is to be."
        )
        return None
    return gate


def held_of(org_id: int) -> "HeldTotals | None":
    """What an org's running calls hold; None where Redis can't be asked, of which `gate_of` has said so."""
    import redis

    from metering.console.connections import open_redis
    from metering.signals.holds import Holds

    try:
        with open_redis() as client:
            (held,) = Holds(client).totals([org_id])
    except (redis.RedisError, CommandError):
        return None
    return held

# ruff: noqa: PLC0415 - imported when the command runs, so that --help is quick
"""Letting a gate follow at once what a command committed."""

from metering.cli.errors import CommandError, quoted
from metering.cli.output import warn
from metering.rules.gates import Balance


def follow_gate(balance: Balance) -> None:
    """Bring an org's gate to its balance. Where Redis can't be asked, say so: the sweep of the jobs will do it."""
    import redis

    from metering.cli.connections import open_redis
    from metering.runtime.clock import system_clock
    from metering.signals.gates import Gates

    try:
        with open_redis() as client:
            Gates(client).follow([balance], system_clock())
    except (redis.RedisError, CommandError) as error:
        warn(
            f"The gate of org {balance.org_id} can't follow now ({quoted(error)}); the next sweep of `metering jobs` mends it."
        )

"""What an org's running calls hold, for whoever looks at its account: at once, or not at all."""

import asyncio
from typing import Final

import redis

from metering.signals.holds import HoldsAsync

PAUSE_S: Final = 1.0
"""How long Redis isn't asked again after it didn't answer: an account must not be late because of it."""


class HeldMoney:
    """Of one server; in its event loop only."""

    def __init__(self, holds: HoldsAsync) -> None:
        self._holds = holds
        self._away_until_s = float("-inf")

    async def held_cents(self, org_id: int) -> int | None:
        """What is held for an org's calls; None where Redis can't tell now."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until_s:
            return None
        try:
            (totals,) = await self._holds.totals([org_id])
        except (redis.RedisError, OSError):
            self._away_until_s = loop.time() + PAUSE_S
            return None
        return totals.held_cents

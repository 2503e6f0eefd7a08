"""Reading one gate from an event loop, quickly or not at all: whoever asks has another place to look."""

import asyncio
from typing import Any, Final

import redis
import redis.asyncio

from metering.rules.gates import GateState
from metering.runtime.names import gate_key
from metering.signals.gates import Gate, held_gate

TIMEOUT_S: Final = 0.5
"""How long Redis may take."""
MAX_CONNECTIONS: Final = 32
NO_GATE: Final = gate_key(0)
"""No org's. To keep what isn't there from expiring changes nothing, and is refused like every other write."""
PAUSE_S: Final = 1.0
"""How long Redis isn't asked again after it didn't answer: so that not everybody waits for nothing."""

_STATES: Final = frozenset(state.value for state in GateState)


class GateReader:
    """Reads gates from Redis, in one event loop."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        """Take a client that has short time-outs; it is closed with this."""
        self._client = client
        self._away_until_s = float("-inf")

    async def read(self, org_id: int) -> Gate | None:
        """An org's gate; None where there is none that counts, or Redis can't tell."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._away_until_s:
            return None
        try:
            answer: Any = await self._client.hmget(gate_key(org_id), ["state", "balance_cents", "version"])
        except redis.ResponseError:  # not a hash: somebody else's doing, which the reconciler mends
            return None
        except (redis.RedisError, OSError):
            self._away_until_s = asyncio.get_running_loop().time() + PAUSE_S
            return None
        gate = held_gate(org_id, *answer)
        counts = gate.version is not None and gate.balance_cents is not None and gate.state in _STATES
        return gate if counts else None

    async def takes_writes(self) -> bool:
        """Whether Redis answers, and writes: not if it is a replica, has lost its replicas, or can't write its file."""
        try:
            await self._client.persist(NO_GATE)
        except (redis.RedisError, OSError):
            return False
        return True

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()

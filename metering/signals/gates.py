"""Gates and signals in Redis: they follow the balances in Postgres (CONTRACT.md section 4)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import redis

from metering.rules.gates import Balance, SignalType, gate_state
from metering.rules.times import format_time

# Every Redis key that this file owns.
GATE_PREFIX: Final = "gate:"
"""`gate:42` is org 42's gate: a hash of `state`, `balance_cents` and `version`."""
SIGNALS_CHANNEL: Final = "balance:signals"
SIGNALS_LOG: Final = "balance:signals:log"
SIGNAL_FIELD: Final = "signal"
"""The field of an entry of the log that holds the message."""

SIGNALS_LOG_LENGTH: Final = 100_000
"""About how many signals the log keeps: what a listener that was away can catch up with."""

PAGE: Final = 1_000
"""How many gates are read at once."""

# One call for a whole batch: compare, set, say. Versions are compared as numbers: doubles hold them exactly up to 2^53.
# Balances are only passed on, so that no double rounds them; whether they close a gate is decided in Python.
_FOLLOW: Final = """
local log, channel, at, log_length = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local said = {}
for i = 2, #KEYS do
    local a = 4 + (i - 2) * 4
    local org_id, balance_cents, version, state = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]
    local held = redis.pcall('HMGET', KEYS[i], 'state', 'version')
    if held.err then -- not a hash: somebody else's doing, and no reason to fail the batch
        redis.call('DEL', KEYS[i])
        held = {}
    end
    local held_version = tonumber(held[2] or '')
    if not held_version or tonumber(version) > held_version then
        redis.call('HSET', KEYS[i], 'state', state, 'balance_cents', balance_cents, 'version', version)
        if state ~= (held[1] or 'exhausted') then
            local message = string.format(
                '{"type":"%s","org_id":%s,"balance_cents":%s,"version":%s,"at":"%s"}',
                state == 'open' and 'balance.restored' or 'balance.exhausted', org_id, balance_cents, version, at)
            redis.call('XADD', log, 'MAXLEN', '~', log_length, '*', 'signal', message)
            redis.call('PUBLISH', channel, message)
            said[#said + 1] = org_id
            said[#said + 1] = state
        end
    end
end
return said
"""

# One call for a page: redis-py takes several times as long over a pipeline of as many.
_READ: Final = """
local gates = {}
for i = 1, #KEYS do
    local held = redis.pcall('HMGET', KEYS[i], 'state', 'balance_cents', 'version')
    for field = 1, 3 do gates[#gates + 1] = not held.err and held[field] or false end
end
return gates
"""

# Only while the gate is as it was read: an org that was made meanwhile keeps its own.
_REMOVE: Final = """
local held = redis.call('HMGET', KEYS[2], 'state', 'version')
if held[2] ~= ARGV[4] then return 0 end
redis.call('DEL', KEYS[2])
if held[1] == 'open' then
    local message = string.format(
        '{"type":"balance.exhausted","org_id":%s,"balance_cents":0,"version":%d,"at":"%s"}',
        ARGV[5], tonumber(ARGV[4]) + 1, ARGV[2])
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'signal', message)
    redis.call('PUBLISH', ARGV[1], message)
end
return 1
"""


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate as Redis holds it. `version` is None where the hash is missing or isn't one of ours."""

    org_id: int
    state: str | None
    balance_cents: int | None
    version: int | None

    def follows(self, balance: Balance) -> bool:
        """Whether the gate says just what follows from `balance`."""
        return (self.state, self.balance_cents, self.version) == (
            gate_state(balance.balance_cents).value,
            balance.balance_cents,
            balance.version,
        )


@dataclass(frozen=True, slots=True)
class Signal:
    """A change of state that was said."""

    org_id: int
    type: SignalType


class Gates:
    """The gates of all orgs. Every method may raise redis.RedisError, and may be repeated."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._follow = client.register_script(_FOLLOW)
        self._read = client.register_script(_READ)
        self._remove = client.register_script(_REMOVE)

    def follow(self, balances: Iterable[Balance], at: datetime) -> list[Signal]:
        """Set each org's gate to what follows from its balance, and say which gates changed their state; all in one call.

        An older version never overwrites a newer one; a missing gate counts as exhausted. An org stands in `balances` once.
        """
        wanted = list(balances)
        if not wanted:
            return []
        keys = [SIGNALS_LOG, *(f"{GATE_PREFIX}{each.org_id}" for each in wanted)]
        arguments: list[Any] = [SIGNALS_CHANNEL, format_time(at), SIGNALS_LOG_LENGTH]
        for each in wanted:
            arguments += (each.org_id, each.balance_cents, each.version, gate_state(each.balance_cents).value)
        said: Any = self._follow(keys=keys, args=arguments)
        return [
            Signal(int(org_id), SignalType.RESTORED if state == b"open" else SignalType.EXHAUSTED)
            for org_id, state in zip(said[::2], said[1::2], strict=True)
        ]

    def read(self, org_ids: Sequence[int]) -> list[Gate]:
        """The gates of `org_ids`, in their order."""
        answers: Any = self._read(keys=[f"{GATE_PREFIX}{org_id}" for org_id in org_ids])
        return [
            Gate(
                org_id,
                None if state is None else state.decode(errors="replace"),
                _integer(balance),
                _integer(version),
            )
            for org_id, state, balance, version in zip(
                org_ids, answers[::3], answers[1::3], answers[2::3], strict=True
            )
        ]

    def org_ids(self) -> Iterator[list[int]]:
        """Pages of the orgs that have a gate; one that is made or removed meanwhile may be missing, and one may come twice."""
        cursor = 0
        while True:
            found: Any = self._client.scan(cursor, match=f"{GATE_PREFIX}*", count=PAGE)
            cursor, keys = found
            page = [_integer(key[len(GATE_PREFIX) :]) for key in keys]
            yield [org_id for org_id in page if org_id is not None]
            if cursor == 0:
                return

    def remove(self, gate: Gate, at: datetime) -> bool:
        """Remove the gate of an org that isn't there, unless it has changed since it was read; give whether it was removed."""
        if gate.version is None:
            return False
        return bool(
            self._remove(
                keys=[SIGNALS_LOG, f"{GATE_PREFIX}{gate.org_id}"],
                args=[SIGNALS_CHANNEL, format_time(at), SIGNALS_LOG_LENGTH, gate.version, gate.org_id],
            )
        )


def _integer(value: bytes | None) -> int | None:
    """A field of a gate as a number; None where it is missing or somebody wrote something else there."""
    try:
        return int(value) if value is not None else None
    except ValueError:
        return None

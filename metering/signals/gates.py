"""Gates and signals in Redis: they follow the balances in Postgres (docs/reference/gate.md#signals)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias

import redis

from metering.rules.gates import Balance, GateState, SignalType
from metering.rules.times import format_time
from metering.runtime.lua import lua_script
from metering.runtime.names import (
    ALL_GATES,
    HOLDING_ORGS,
    SIGNALS_CHANNEL,
    SIGNALS_LOG,
    gate_key,
    gate_keys,
    org_of_gate,
)

SIGNAL_FIELD: Final = "signal"
"""The field of an entry of the log that holds the message."""

SIGNALS_LOG_LENGTH: Final = 100_000
"""About how many signals the log keeps: what a listener that was away can catch up with."""

PAGE: Final = 1_000
"""How many gates are read at once."""

MAX_VERSION: Final = 2**53 - 2
"""The highest version of a gate that counts: it and the next one are exact in Lua, whose numbers are doubles (version_of.lua)."""

_FOLLOW: Final = lua_script(__package__, "follow.lua")
_READ_PAGE: Final = lua_script(__package__, "read_page.lua")
_CLOSE_STRAY: Final = lua_script(__package__, "close_orphan.lua")


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate as Redis holds it. `version` is None where there is none that counts: such a gate is as good as missing."""

    org_id: int
    state: str | None
    balance_cents: int | None
    version: int | None
    max_concurrent_calls: int | None = None
    """None is no limit; 0 where somebody wrote what is none."""

    def follows(self, balance: Balance) -> bool:
        """Whether the gate says just what follows from `balance`."""
        return (self.state, self.balance_cents, self.version, self.max_concurrent_calls) == (
            balance.gate_state.value,
            balance.balance_cents,
            balance.version,
            balance.max_concurrent_calls,
        )


@dataclass(frozen=True, slots=True)
class Signal:
    """A change of state that was said."""

    org_id: int
    type: SignalType


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of gates that were to change."""

    signals: list[Signal]
    written: int
    """How many gates changed."""
    failed: int
    """How many should have changed and couldn't."""
    error: str
    """What Redis said to the first that failed; empty if none did."""
    holds_refused: str = ""
    """Why Redis doesn't tell this user whether somebody has holds: none can end then. Empty if it does."""


CallsByOrg: TypeAlias = Mapping[int, Sequence[int]]
"""Ids of calls, by their orgs."""

NOT_SAID: Final = "?"
"""Instead of the calls that have ended. follow.lua has the same."""


class SeenCalls(Protocol):
    """Calls whose events were seen. They are asked for only where somebody has holds."""

    def ended(self) -> CallsByOrg:
        """Those that were billed, now or before, or cost nothing: their holds end."""

    def not_billed(self) -> CallsByOrg:
        """Those whose events were rejected: their holds lapse."""


class Gates:
    """The gates of all orgs. Every method may raise redis.RedisError, and may be repeated."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._follow = client.register_script(_FOLLOW)
        self._read_page = client.register_script(_READ_PAGE)
        self._close_stray = client.register_script(_CLOSE_STRAY)
        self._somebody_holds = False
        """Whether some org had holds when that was last asked."""

    def follow(
        self, balances: Iterable[Balance], at: datetime, seen: SeenCalls | None = None
    ) -> list[Signal]:
        """Set each org's gate to what follows from its balance, and say which gates changed their state; all in one call.

        An older version never overwrites a newer one; a missing gate counts as exhausted. An org stands in `balances` once.
        In the same call the holds of the calls `seen` end, whichever version the gate has: the balance that a call was
        taken from must be among `balances`, or have been followed.

        Raises redis.ResponseError if a gate couldn't follow, its signal not be logged, or a hold not end; the others have
        followed all the same.
        """
        followed = self.try_to_follow(balances, at, seen)
        if followed.failed:
            raise redis.ResponseError(f"{followed.failed} gates could not follow: {followed.error}")
        return followed.signals

    def try_to_follow(
        self, balances: Iterable[Balance], at: datetime, seen: SeenCalls | None = None
    ) -> Followed:
        """As `follow`, but tells how many gates failed, and how many were written, instead of raising."""
        by_state: dict[GateState, list[Balance]] = {state: [] for state in GateState}
        for balance in balances:
            by_state[balance.gate_state].append(balance)
        wanted = by_state[GateState.OPEN] + by_state[GateState.EXHAUSTED] + by_state[GateState.SUSPENDED]
        if not wanted and seen is None:
            return Followed([], 0, 0, "")
        keys = [SIGNALS_LOG, *gate_keys([each.org_id for each in wanted])]
        arguments: list[str | int] = [SIGNALS_CHANNEL, format_time(at), SIGNALS_LOG_LENGTH]
        arguments += (len(by_state[GateState.OPEN]), len(by_state[GateState.EXHAUSTED]))
        arguments.append(" ".join([f"{each.balance_cents} {each.version}" for each in wanted]))
        # Few orgs have a limit.
        limits = [
            f"{nth} {each.max_concurrent_calls}"
            for nth, each in enumerate(wanted, 1)
            if each.max_concurrent_calls is not None
        ]
        arguments.append(" ".join(limits))
        if seen is None:
            return _followed(self._follow(keys=keys, args=[*arguments, "", "", HOLDING_ORGS]))
        # Who has no holds pays for one question alone: so the calls are told only where somebody has some.
        said = _listed(seen) if self._somebody_holds else [NOT_SAID, ""]
        answer: Any = self._follow(keys=keys, args=[*arguments, *said, HOLDING_ORGS])
        if answer[-1] == 1 and not self._somebody_holds:
            answer = self._follow(keys=keys, args=[*arguments, *_listed(seen), HOLDING_ORGS])
        self._somebody_holds = answer[-1] == 1
        return _followed(answer)

    def calls_of_holders(self, calls: CallsByOrg) -> CallsByOrg:
        """Those of `calls` whose orgs have holds, or had some lately. Asks only, so that a Redis without memory answers too."""
        org_ids = list(calls)
        held: Any = self._client.smismember(HOLDING_ORGS, org_ids) if org_ids else []
        return {org_id: calls[org_id] for org_id, holds in zip(org_ids, held, strict=True) if holds}

    def read(self, org_ids: Sequence[int]) -> list[Gate]:
        """The gates of `org_ids`, in their order."""
        answers: Any = self._read_page(keys=gate_keys(org_ids))
        return [
            held_gate(org_id, state, balance, version, limit)
            for org_id, state, balance, version, limit in zip(
                org_ids, answers[::4], answers[1::4], answers[2::4], answers[3::4], strict=True
            )
        ]

    def org_ids(self) -> Iterator[list[int]]:
        """Pages of the orgs that have a gate; one that is made or lost meanwhile may be missing, and one may come twice."""
        cursor = 0
        while True:
            found: Any = self._client.scan(cursor, match=ALL_GATES, count=PAGE)
            cursor, keys = found
            page = [org_of_gate(key) for key in keys]
            yield [org_id for org_id in page if org_id is not None]
            if cursor == 0:
                return

    def close_orphan(self, gate: Gate, at: datetime) -> Followed:
        """Close the gate of an org that isn't there, unless it is closed, gone, or has changed since it was read.

        It stays, with the next version: if the org is made again, with the same id, its versions must not go backwards.
        """
        return _followed(
            self._close_stray(
                keys=[SIGNALS_LOG, gate_key(gate.org_id)],
                args=[
                    *(SIGNALS_CHANNEL, format_time(at), SIGNALS_LOG_LENGTH),
                    "" if gate.version is None else gate.version,
                ],
            )
        )


def held_gate(
    org_id: int,
    state: bytes | None,
    balance: bytes | None,
    version: bytes | None,
    max_concurrent_calls: bytes | None = None,
) -> Gate:
    """A gate by the fields of its hash, as Redis has them."""
    return Gate(
        org_id,
        None if state is None else state.decode(errors="replace"),
        _cents(balance),
        _version(version),
        None if max_concurrent_calls is None else _cents(max_concurrent_calls) or 0,
    )


def _followed(answer: Any) -> Followed:
    """What a script that writes has answered."""
    written, failed, error, said, *more = answer
    signals = [
        Signal(int(org_id), SignalType(type_.decode()))
        for org_id, type_ in zip(said[::2], said[1::2], strict=True)
    ]
    refused = more[0].decode(errors="replace") if more and isinstance(more[0], bytes) else ""
    return Followed(signals, written, failed, error.decode(errors="replace"), refused)


def _listed(seen: SeenCalls) -> list[str]:
    """Calls as follow.lua takes them: those that have ended, and those that can't be billed."""
    return [
        " ".join([f"{org_id}={','.join(map(str, call_ids))}" for org_id, call_ids in calls.items()])
        for calls in (seen.ended(), seen.not_billed())
    ]


def _version(value: bytes | None) -> int | None:
    """A gate's version; None where it is missing or none that counts. The same rule as `version_of` in Lua."""
    if value is None or not value.isdigit():
        return None
    digits = value.lstrip(b"0") or b"0"
    if len(digits) > len(str(MAX_VERSION)):  # Python itself refuses to read thousands of digits
        return None
    version = int(digits)
    return version if version <= MAX_VERSION else None


def _cents(value: bytes | None) -> int | None:
    """A gate's balance; None where it is missing or somebody wrote something else there."""
    try:
        return int(value) if value is not None else None
    except ValueError:
        return None

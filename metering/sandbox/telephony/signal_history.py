"""Signal history: signals as they were published, read from their log, which orders them beside everything else that Redis
did."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import redis

from metering.rules.gates import GateState, SignalType
from metering.runtime.names import SIGNALS_LOG
from metering.signals.gates import SIGNAL_FIELD

Position = tuple[int, int]
"""A place in the log: milliseconds of Redis's clock, and a number."""
BEFORE_ALL: Final = (0, 0)
RELOAD_PREFIX: Final = "auto_reload."


class Message(msgspec.Struct, frozen=True):
    """A signal, as far as simulated telephony minds it (docs/reference/gate.md#signals)."""

    type: SignalType
    org_id: int
    balance_cents: int
    version: int
    state: GateState | None = None
    """None of what a version of before has said; its type tells."""

    @property
    def leads_to(self) -> GateState:
        """The gate's state from then on."""
        if self.state is not None:
            return self.state
        return GateState.OPEN if self.type is SignalType.RESTORED else GateState.EXHAUSTED


class ReloadMessage(msgspec.Struct, frozen=True):
    """A signal about an auto-reload. It may come more than once, then with the same id.

    See docs/reference/auto-reload.md#signals.
    """

    type: str
    org_id: int
    id: int
    amount_cents: int = 0
    code: str | None = None
    """Why the card was not charged."""
    reason: str | None = None
    """Why no charge was made."""


@dataclass(frozen=True, slots=True)
class LoggedSignal:
    """A signal in the log."""

    position: Position
    message: Message


def parse_message(raw: bytes) -> Message | None:
    """A signal's message; None for what isn't one, which somebody else must have said."""
    try:
        return msgspec.json.decode(raw, type=Message)
    except msgspec.DecodeError:
        return None


def parse_reload_message(raw: bytes) -> ReloadMessage | None:
    """As `parse_message`, of signals about auto-reloads."""
    try:
        message = msgspec.json.decode(raw, type=ReloadMessage)
    except msgspec.DecodeError:
        return None
    return message if message.type.startswith(RELOAD_PREFIX) else None


def parse_position(entry_id: bytes) -> Position:
    """The id of an entry of the log as its place there."""
    ms, number = entry_id.split(b"-")
    return int(ms), int(number)


def newest_position(answer: Any) -> Position:
    """The place of the newest signal, from Redis's answer to `XREVRANGE <log> + - COUNT 1`."""
    return parse_position(answer[0][0]) if answer else BEFORE_ALL


def last_position(client: redis.Redis) -> Position:
    """Where the log ends."""
    return newest_position(client.xrevrange(SIGNALS_LOG, count=1))


def read_log(client: redis.Redis, after: Position, org_ids: Collection[int]) -> list[LoggedSignal]:
    """The signals about `org_ids` that were said after `after`, in order."""
    found = [
        LoggedSignal(parse_position(entry_id), message)
        for entry_id, raw in _entries(client, after)
        if (message := parse_message(raw)) is not None
    ]
    return [said for said in found if said.message.org_id in org_ids]


def read_reload_log(client: redis.Redis, after: Position, org_ids: Collection[int]) -> list[ReloadMessage]:
    """The signals about auto-reloads of `org_ids` that were said after `after`, each once."""
    found = (parse_reload_message(raw) for _, raw in _entries(client, after))
    each_once = {(each.org_id, each.id): each for each in found if each is not None}
    return [each for each in each_once.values() if each.org_id in org_ids]


def _entries(client: redis.Redis, after: Position) -> list[tuple[bytes, bytes]]:
    entries: Any = client.xrange(SIGNALS_LOG, min=f"({after[0]}-{after[1]}")
    return [(entry_id, fields.get(SIGNAL_FIELD.encode(), b"")) for entry_id, fields in entries]

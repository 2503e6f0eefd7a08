"""Signals as they were said: read from their log, which orders them beside everything else that Redis did."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import redis

from metering.rules.gates import SignalType
from metering.signals.gates import SIGNAL_FIELD, SIGNALS_LOG

Position = tuple[int, int]
"""A place in the log: milliseconds of Redis's clock, and a number."""
BEFORE_ALL: Final = (0, 0)


class Message(msgspec.Struct, frozen=True):
    """A signal, as far as simulated telephony minds it (CONTRACT.md section 4)."""

    type: SignalType
    org_id: int
    balance_cents: int
    version: int


@dataclass(frozen=True, slots=True)
class Said:
    """A signal in the log."""

    position: Position
    message: Message


def parse_message(raw: bytes) -> Message | None:
    """A signal's message; None for what isn't one, which somebody else must have said."""
    try:
        return msgspec.json.decode(raw, type=Message)
    except msgspec.DecodeError:
        return None


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


def read_log(client: redis.Redis, after: Position, org_ids: Collection[int]) -> list[Said]:
    """The signals about `org_ids` that were said after `after`, in order."""
    entries: Any = client.xrange(SIGNALS_LOG, min=f"({after[0]}-{after[1]}")
    found = [
        Said(parse_position(entry_id), message)
        for entry_id, fields in entries
        if (message := parse_message(fields.get(SIGNAL_FIELD.encode(), b""))) is not None
    ]
    return [said for said in found if said.message.org_id in org_ids]

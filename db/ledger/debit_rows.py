"""Debits as rows of Postgres's binary COPY, each packed in two parts: nearly all of it before the org is locked, the rest after.

Packed here, because psycopg's writer takes longer over a row, all of it under the locks: docs/explanation/performance.md.
The format is that of PostgreSQL's documentation of COPY, section "Binary Format": big-endian, each value after its length.
"""

from functools import lru_cache
from struct import Struct
from typing import Final

from db.models import Kind
from db.postgres.arrays import bigints
from db.postgres.instants import microseconds
from metering.rules.events import CallEvent
from metering.rules.pricing import Charge, Price
from metering.rules.steps import Steps, pack_steps

COLUMNS: Final = (
    *("balance_after_cents", "created_at"),
    *("org_id", "call_id", "duration_us", "ended_at", "stream_id"),
    *("phone_number_id", "phone_number_value", "metadata"),
    *(
        "kind",
        "amount_cents",
        "billable_seconds",
        "rate_microusd_per_minute",
        "increment_first_s",
        "increment_next_s",
    ),
    *("minimum_s", "connect_fee_microusd", "tier", "direction", "description"),
)
"""In the order in which they are packed: what is known last, what is the call's alone, what many calls have in common."""

STEP_COLUMNS: Final = ("used_before_s", "steps")
"""After the others, in a batch in which any call was priced by steps."""

START: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What goes before the first row: the signature, no flags, no extension."""
END: Final = b"\xff\xff"
"""What goes after the last row."""

_KIND: Final = Kind.DEBIT.value.encode()
_INT8: Final = 8
_BALANCE_AND_TIME: Final = Struct(">hiqiq")
_CALL: Final = Struct(">" + 4 * "iq" + "i")
_TERMS: Final = Struct(f">i{len(_KIND)}s" + 7 * "iq")
_LENGTH: Final = Struct(">i")
_NUMBER: Final = Struct(">iq")
_NULL: Final = _LENGTH.pack(-1)
_TERMS_KEPT: Final = 4_096


def pack_debit(stream_id: str, event: CallEvent, price: Price, charge: Charge) -> bytes:
    """All of a debit's row but the balance after it and the time of posting, which come first (`pack_posting`).

    Raises struct.error for a number of more than 64 bits, UnicodeEncodeError for text that isn't text.
    """
    return pack_call(stream_id, event) + pack_terms(event, price, charge)


def pack_call(stream_id: str, event: CallEvent) -> bytes:
    """The part that is the call's alone. Raises as `pack_debit`."""
    stream_id_bytes = stream_id.encode()
    number_id, number_value, metadata = event.phone_number_id, event.phone_number_value, event.metadata
    return b"".join(
        (
            _CALL.pack(
                _INT8,
                event.org_id,
                _INT8,
                event.call_id,
                _INT8,
                event.duration_us,
                _INT8,
                microseconds(event.ended_at),
                len(stream_id_bytes),
            ),
            stream_id_bytes,
            _NULL if number_id is None else _NUMBER.pack(_INT8, number_id),
            _NULL if number_value is None else _text(number_value),
            _NULL if metadata == "{}" else _text(metadata),  # json goes over the wire as its text
        )
    )


def pack_terms(event: CallEvent, price: Price, charge: Charge) -> bytes:
    """The part that says what was charged, and by which price. Raises as `pack_debit`."""
    return _pack_terms(
        charge.amount_cents,
        charge.billable_seconds,
        price.rate_microusd_per_minute,
        price.increment_first_s,
        price.increment_next_s,
        price.minimum_s,
        price.connect_fee_microusd,
        event.tier,
        event.direction,
        charge.description,
    )


@lru_cache(maxsize=_TERMS_KEPT)
def _pack_terms(
    amount_cents: int,
    billable_seconds: int,
    rate_microusd_per_minute: int,
    increment_first_s: int,
    increment_next_s: int,
    minimum_s: int,
    connect_fee_microusd: int,
    tier: str,
    direction: str,
    description: str,
) -> bytes:
    """What a call was charged, and by which price: few of them, because seconds come in increments; calls are many."""
    numbers = _TERMS.pack(
        *(len(_KIND), _KIND, _INT8, -amount_cents, _INT8, billable_seconds, _INT8, rate_microusd_per_minute),
        *(_INT8, increment_first_s, _INT8, increment_next_s, _INT8, minimum_s, _INT8, connect_fee_microusd),
    )
    return b"".join((numbers, _text(tier), _text(direction), _text(description)))


def pack_posting(balance_after_cents: int, created_us: int) -> bytes:
    """The beginning of a debit's row: its two values that are known only under the org's lock."""
    return _BALANCE_AND_TIME.pack(len(COLUMNS), _INT8, balance_after_cents, _INT8, created_us)


def pack_stepped_posting(balance_after_cents: int, created_us: int) -> bytes:
    """The same, of a row with `STEP_COLUMNS` at its end."""
    return _BALANCE_AND_TIME.pack(
        len(COLUMNS) + len(STEP_COLUMNS), _INT8, balance_after_cents, _INT8, created_us
    )


def pack_used(used_before_s: int, steps: Steps) -> bytes:
    """The end of such a row: by which steps the call was priced, and what was used before it."""
    return _NUMBER.pack(_INT8, used_before_s) + _pack_steps(steps)


NO_STEPS: Final = 2 * _NULL
"""The end of such a row where the call's price has no steps."""


@lru_cache(maxsize=_TERMS_KEPT)
def _pack_steps(steps: Steps) -> bytes:
    data = bigints(pack_steps(steps))
    return _LENGTH.pack(len(data)) + data


def _text(value: str) -> bytes:
    data = value.encode()
    return _LENGTH.pack(len(data)) + data

"""Debits as rows of Postgres's binary COPY, each packed in two parts: nearly all of it before the org is locked, the rest after.

Packed here, because psycopg's writer takes longer over a row, all of it under the locks (docs/performance.md). The format is that
of PostgreSQL's documentation of COPY, section "Binary Format": big-endian, each value after its length in bytes.
"""

from struct import Struct
from typing import Final

from db.instants import microseconds
from db.models import Kind
from metering.rules.events import CallEvent
from metering.rules.pricing import Charge, Price

COLUMNS: Final = (
    *("balance_after_cents", "created_at"),
    *("org_id", "kind", "amount_cents", "call_id", "duration_us", "ended_at"),
    *("billable_seconds", "rate_microusd_per_minute", "increment_first_s", "increment_next_s"),
    *("minimum_s", "connect_fee_microusd", "description", "stream_id", "tier", "direction"),
    *("phone_number_id", "phone_number_value", "metadata"),
)
"""In the order in which they are packed."""

COPY_DEBITS: Final = f"COPY transactions ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
START: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What goes before the first row: the signature, no flags, no extension."""
END: Final = b"\xff\xff"
"""What goes after the last row."""

_KIND: Final = Kind.DEBIT.value.encode()
_INT8: Final = 8
_BALANCE_AND_TIME: Final = Struct(">hiqiq")
_NUMBERS: Final = Struct(f">iqi{len(_KIND)}s" + 10 * "iq")
_LENGTH: Final = Struct(">i")
_NUMBER: Final = Struct(">iq")
_NULL: Final = _LENGTH.pack(-1)


def pack_debit(stream_id: str, event: CallEvent, price: Price, charge: Charge) -> bytes:
    """All of a debit's row but the balance after it and the time of posting, which come first (`pack_posting`).

    Raises struct.error for a number of more than 64 bits, UnicodeEncodeError for text that isn't text.
    """
    numbers = _NUMBERS.pack(
        *(_INT8, event.org_id, len(_KIND), _KIND, _INT8, -charge.amount_cents),
        *(_INT8, event.call_id, _INT8, event.duration_us, _INT8, microseconds(event.ended_at)),
        *(_INT8, charge.billable_seconds, _INT8, price.rate_microusd_per_minute),
        *(_INT8, price.increment_first_s, _INT8, price.increment_next_s),
        *(_INT8, price.minimum_s, _INT8, price.connect_fee_microusd),
    )
    number_id = event.phone_number_id
    # json goes over the wire as its text.
    metadata = None if event.metadata == "{}" else event.metadata
    return b"".join(
        (
            *(
                numbers,
                _text(charge.description),
                _text(stream_id),
                _text(event.tier),
                _text(event.direction),
            ),
            _NULL if number_id is None else _NUMBER.pack(_INT8, number_id),
            _NULL if event.phone_number_value is None else _text(event.phone_number_value),
            _NULL if metadata is None else _text(metadata),
        )
    )


def pack_posting(balance_after_cents: int, created_us: int) -> bytes:
    """The beginning of a debit's row: its two values that are known only under the org's lock."""
    return _BALANCE_AND_TIME.pack(len(COLUMNS), _INT8, balance_after_cents, _INT8, created_us)


def _text(value: str) -> bytes:
    data = value.encode()
    return _LENGTH.pack(len(data)) + data

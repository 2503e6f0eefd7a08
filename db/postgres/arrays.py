"""Arrays as parameters, packed here: psycopg's own way takes ten times as long."""

from collections.abc import Iterable, Sequence
from struct import Struct, pack
from typing import Final

import psycopg

_INT8: Final = 8
"""A value's length in bytes."""
# As array_recv in PostgreSQL's source takes it: one dimension, no NULLs, the type of the values, how many, counted from 1.
_HEADER: Final = Struct(">iiIii")
_BIGINT_OID: Final = psycopg.adapters.types["int8"].oid
_TEXT_OID: Final = psycopg.adapters.types["text"].oid
_TIMESTAMPTZ_OID: Final = psycopg.adapters.types["timestamptz"].oid


def array(values: Iterable[int | str]) -> str:
    """An array in Postgres's text form, of values that need no quotes.

    Where time counts, give it a list: a generator's turns cost more than all the rest.
    """
    return f"{{{','.join(map(str, values))}}}"


def bigints(values: Sequence[int]) -> bytes:
    """An array of bigint in Postgres's binary form, for `db.postgres.exchange`: neither side makes or reads text.

    Raises struct.error for a number of more than 64 bits.
    """
    return _packed(_BIGINT_OID, values)


def instants(values_us: Sequence[int]) -> bytes:
    """An array of timestamptz in the same form, of times as Postgres keeps them (`db.postgres.instants.microseconds`)."""
    return _packed(_TIMESTAMPTZ_OID, values_us)


def texts(values: Sequence[str]) -> bytes:
    """An array of text in the same form."""
    count = len(values)
    encoded = [value.encode() for value in values]
    return _HEADER.pack(min(count, 1), 0, _TEXT_OID, count, 1)[: 20 if count else 12] + b"".join(
        pack(">i", len(value)) + value for value in encoded
    )


def _packed(oid: int, values: Sequence[int]) -> bytes:
    count = len(values)
    parts = [_INT8] * (2 * count)
    parts[1::2] = values
    # An empty array has no dimension.
    return _HEADER.pack(min(count, 1), 0, oid, count, 1)[: 20 if count else 12] + pack(
        ">" + "iq" * count, *parts
    )

"""What the ledger must say of a list of events: worked out call by call, with fractions, by none of the product's code."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any


@dataclass(frozen=True)
class Expected:
    """Balances in cents by org, what each (org, call) costs in cents, and how often each event is kept as rejected."""

    balances: dict[int, int]
    debits: dict[tuple[int, int], int]
    rejected: Counter[bytes]


def expect(pushed: Sequence[bytes], *, rates: Mapping[str, str], org_ids: Collection[int]) -> Expected:
    """What must come of events pushed in this order; `rates` are USD per minute by tier, in increments of 60 s."""
    known: dict[tuple[int, int], dict[str, Any]] = {}
    expected = Expected(dict.fromkeys(org_ids, 0), {}, Counter())
    for raw in pushed:
        try:
            call = json.loads(raw)
        except ValueError:
            expected.rejected[raw] += 1
            continue
        key = call["org_id"], call["call_id"]
        if key[0] not in org_ids or call["tier"] not in rates or known.get(key, call) != call:
            expected.rejected[raw] += 1
        elif call["duration_seconds"] > 0 and key not in known:
            known[key] = call
            minutes = ceil(Fraction(str(call["duration_seconds"])) / 60)
            expected.debits[key] = floor(minutes * Fraction(rates[call["tier"]]) * 100 + Fraction(1, 2))
            expected.balances[key[0]] -= expected.debits[key]
    return expected

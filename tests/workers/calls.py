"""Events for the meters' tests, and whether the ledger holds what must come of them."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import redis
from sqlalchemy import Engine

from metering.runtime.names import gate_key
from metering.signals.holds import Holds
from tests.spine.billing import assert_sound, balances, debits, event, prepare, price, rejections
from tests.workers.model import Expected, expect
from workers.stream import Backlog, CallStream, Entry, backlog

RATES: Final = {"bolt": "0.08", "spark": "0.0125", "odd": "0.333333"}
ORG_IDS: Final = tuple(range(1, 21))
UNKNOWN_ORG_ID: Final = 999
DURATIONS_S: Final = (0, 0.001, 1, 59.999999, 60, 60.000001, 75, 119.999, 3600)


def encode(**fields: Any) -> bytes:
    """A call event as telephony pushes it."""
    return json.dumps(event(**fields)).encode()


def make_calls(
    number: int,
    *,
    seed: int,
    first_call_id: int = 1,
    broken: bool = True,
    conflicts: bool = True,
    org_ids: Sequence[int] = ORG_IDS,
) -> list[bytes]:
    """So many events, always the same ones for a seed: calls, of which some come again later.

    With `broken` some are of an org that nobody knows, some aren't JSON, and with `conflicts` some contradict an earlier one:
    which of the two is billed depends on the order, so that is for one meter alone.
    """
    chance = random.Random(seed)
    made: list[bytes] = []
    calls: list[dict[str, Any]] = []
    for call_id in range(first_call_id, first_call_id + number):
        call = {
            "call_id": call_id,
            "org_id": chance.choice(org_ids),
            "tier": chance.choice(sorted(RATES)),
            "direction": chance.choice(["inbound", "outbound"]),
            "duration_seconds": chance.choice(DURATIONS_S),
        }
        kind = chance.random()
        if calls and kind < 0.1:
            made.append(encode(**chance.choice(calls)))
        elif broken and conflicts and calls and kind < 0.12:
            earlier = chance.choice([each for each in calls[-50:] if each["duration_seconds"]] or calls)
            made.append(encode(**(earlier | {"duration_seconds": 7})))
        elif broken and kind < 0.13:
            made.append(encode(**(call | {"org_id": UNKNOWN_ORG_ID})))
        elif broken and kind < 0.14:
            made.append(b"not JSON: %d" % call_id)
        else:
            calls.append(call)
            made.append(encode(**call))
    return made


def prepare_ledger(engine: Engine) -> None:
    """Make the orgs and tiers that the events name."""
    prepare(engine, org_ids=ORG_IDS, prices=[price(tier, rate) for tier, rate in RATES.items()])


def expected_of(pushed: Sequence[bytes]) -> Expected:
    """What must come of events pushed in this order."""
    return expect(pushed, rates=RATES, org_ids=ORG_IDS)


def assert_billed(engine: Engine, client: redis.Redis, pushed: Sequence[bytes]) -> None:
    """Exactly what must come of the events is in the ledger, each once, and nothing is left in the stream."""
    expected = expected_of(pushed)
    billed = debits(engine)
    assert {(row.org_id, row.call_id): -row.amount_cents for row in billed} == expected.debits
    assert len(billed) == len(expected.debits)
    assert balances(engine) == expected.balances
    assert Counter(bytes(row.raw) for row in rejections(engine)) == expected.rejected
    assert backlog(client) == Backlog(length=0, pending=0)
    assert_sound(engine)


def read_all(stream: CallStream, *, limit: int) -> list[Entry]:
    """What nobody has read yet, as one list."""
    return [entry for part in stream.parts(limit=limit, block_ms=1) for entry in part]


def hold_all(client: redis.Redis, pushed: Sequence[bytes]) -> None:
    """Hold a cent for each call of an org that is known, as if each had been started."""
    named = {
        (each["org_id"], each["call_id"])
        for raw in pushed
        if raw.startswith(b"{")
        for each in [json.loads(raw)]
    }
    for org_id in ORG_IDS:
        client.hset(gate_key(org_id), mapping={"state": "open", "balance_cents": 10**9, "version": 0})
    holds = Holds(client)
    for org_id, call_id in sorted(named):
        if org_id in ORG_IDS:
            holds.start(org_id, call_id, 1, 3_600)
    assert sum(each.running_calls for each in holds.totals(ORG_IDS)) > 2_000


def assert_none_is_held(client: redis.Redis) -> None:
    """Every call's event has ended its hold."""
    totals = Holds(client).totals(ORG_IDS)
    assert [each for each in totals if each.held_cents or each.running_calls or each.lapsed_calls] == []

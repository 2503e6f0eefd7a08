"""Real calls cost what was worked out for them independently of this project, however often and in whatever order they come."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from metering.rules.steps import Step
from tests.conftest import Database
from tests.spine.billing import assert_sound, balances, debits, prepare, price, push, run_meters

DATA = Path(__file__).parents[3] / "shared" / "data"
CALLS = DATA / "calls-1999-02-first-half.jsonl.gz"
EXPECTED = DATA / "calls-1999-02-first-half.expected.json"

pytestmark = pytest.mark.skipif(not CALLS.exists(), reason="the real calls are not beside this checkout")


def billed_per_org(database: Database) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for debit in debits(database.engine):
        org = found.setdefault(str(debit.org_id), {"debits": 0, "minutes": 0, "cents": 0})
        org["debits"] += 1
        org["minutes"] += debit.billable_seconds // 60
        org["cents"] -= debit.amount_cents
    return found


def test_real_calls_cost_what_they_must_and_only_once(database: Database, redis_client: redis.Redis) -> None:
    expected: dict[str, Any] = json.loads(EXPECTED.read_text())
    rates = expected["rates_cents_per_minute"]
    prepare(
        database.engine,
        org_ids=map(int, expected["orgs"]),
        prices=[price(tier, f"{cents / 100:.2f}") for tier, cents in rates.items()],
    )
    with gzip.open(CALLS) as file:
        calls = [line.strip() for line in file]
    assert len(calls) == sum(org["calls"] for org in expected["orgs"].values()) == 17_456
    must_cost = {
        org_id: {what: org[what] for what in ("debits", "minutes", "cents")}
        for org_id, org in expected["orgs"].items()
    }

    push(redis_client, calls)
    run_meters(database.engine, redis_client)
    assert billed_per_org(database) == must_cost

    twice_more = calls * 2
    random.Random(1999).shuffle(twice_more)
    push(redis_client, twice_more)
    run_meters(database.engine, redis_client, meters=3)
    assert billed_per_org(database) == must_cost
    assert sum(balances(database.engine).values()) == -374_759
    assert_sound(database.engine)


def test_steps_of_one_rate_change_no_debit(database: Database, redis_client: redis.Redis) -> None:
    """Priced by steps, under the locks, each call costs and says what it does without."""
    expected: dict[str, Any] = json.loads(EXPECTED.read_text())
    prices = []
    for tier, cents in expected["rates_cents_per_minute"].items():
        plain = price(tier, f"{cents / 100:.2f}")
        rate = plain.rate_microusd_per_minute
        prices.append(replace(plain, steps=(Step(6_000, rate), Step(60_000, rate), Step(None, rate))))
    prepare(database.engine, org_ids=map(int, expected["orgs"]), prices=prices)
    with gzip.open(CALLS) as file:
        push(redis_client, [line.strip() for line in file])
    run_meters(database.engine, redis_client, meters=2)
    assert billed_per_org(database) == {
        org_id: {what: org[what] for what in ("debits", "minutes", "cents")}
        for org_id, org in expected["orgs"].items()
    }
    with database.engine.connect() as connection:
        assert (
            connection.scalar(
                text("""
                SELECT count(*) FROM transactions WHERE steps IS NULL OR description IS DISTINCT FROM 'Call billing: '
                    || billable_seconds / 60 || CASE billable_seconds WHEN 60 THEN ' minute' ELSE ' minutes' END
                    || ' × $' || round(rate_microusd_per_minute * 0.000001, 2)
            """)
            )
            == 0
        )
    assert_sound(database.engine)

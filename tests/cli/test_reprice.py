"""`metering reprice`: shown, and applied once per key, also where it is killed between two orgs."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import redis
from sqlalchemy import text

from metering.runtime.crashpoints import ENVIRONMENT_VARIABLE, CrashPoint
from metering.signals.gates import Gates
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.db.audit.ledger import a_call, make_orgs, make_prices, post
from tests.db.ledger.test_repricing import APRIL, BOLT

TIME = ("--tier", "bolt", "--from", "2026-04-01T00:00:00Z", "--to", "2026-05-01T00:00:00Z")
APPLIED = (*TIME, "--price", "0.06", "--apply", "--key", "april", "--reason", "Billed at last year's price")


@pytest.fixture
def billed(cli: Cli, database: Database) -> Cli:
    """Org 1 with 2 minutes, org 2 with 10, org 3 with one of another month; all below zero."""
    make_orgs(database.engine, 1, 2, 3)
    make_prices(database.engine, BOLT)
    for org_id, minutes, at in ((1, 2, APRIL), (2, 10, APRIL), (3, 1, datetime(2026, 5, 1, tzinfo=UTC))):
        duration = timedelta(minutes=minutes)
        duration_us = round(duration / timedelta(microseconds=1))
        post(database.engine, [a_call(org_id, 7, "bolt", duration_us, at + duration)])
    return cli


def transactions(database: Database) -> int:
    with database.engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM transactions")) or 0


def test_it_shows_a_table_and_writes_nothing(billed: Cli, database: Database) -> None:
    said = billed.run("reprice", *TIME, "--price", "0.06").stdout
    assert "│   2 │     1 │     600 │       0.80 │          0.60 │          -0.20 │" in said
    assert said.index("│   2 │") < said.index("│   1 │")  # the greatest difference first
    assert (
        "2 calls of 2 orgs are billed 0.96 USD; re-priced they come to 0.72 USD, a difference of -0.24 USD."
        in said
    )
    assert "Nothing was written; --apply" in said
    assert transactions(database) == 3
    assert (
        "No call of that tier and time" in billed.run("reprice", *TIME, "--price", "1", "--org", "3").stdout
    )


def test_it_shows_json_and_csv(billed: Cli) -> None:
    found = billed.json("reprice", *TIME, "--step", "5:0", "--step", ":0.08")
    assert found.pop("taken_at").startswith("20")
    assert found == {
        "tier": "bolt",
        "from": "2026-04-01T00:00:00.000Z",
        "to": "2026-05-01T00:00:00.000Z",
        "org_id": None,
        "usd_per_minute": None,
        "steps": ["5:0.00", ":0.08"],
        "increment": None,
        "minimum_seconds": None,
        "connect_fee_usd": None,
        "results": [
            {
                "org_id": 1,
                "calls": 1,
                "billable_seconds": 120,
                "billed_cents": 16,
                "repriced_cents": 0,
                "difference_cents": -16,
            },
            {
                "org_id": 2,
                "calls": 1,
                "billable_seconds": 600,
                "billed_cents": 80,
                "repriced_cents": 40,
                "difference_cents": -40,
            },
        ],
        "total": 2,
        "totals": {
            "orgs": 2,
            "calls": 2,
            "billable_seconds": 720,
            "billed_cents": 96,
            "repriced_cents": 40,
            "difference_cents": -56,
        },
    }
    assert billed.run("reprice", *TIME, "--price", "0.06", "--csv").stdout == (
        "org_id,calls,billable_seconds,billed_cents,repriced_cents,difference_cents\n"
        "1,1,120,16,12,-4\n2,1,600,80,60,-20\n"
    )


BAD = [
    ((*TIME,), "price: say with --price"),
    ((*TIME, "--price", "1", "--step", ":1"), "price: say with --price"),
    ((*TIME, "--price", "1e-2"), "price: must be plain USD"),
    ((*TIME, "--step", "5:0"), "step: the last step must have no end"),
    ((*TIME, "--price", "1", "--increment", "0/1"), "increment: must be FIRST/NEXT"),
    ((*TIME, "--price", "1", "--minimum", "-1"), "minimum: must be from 0"),
    ((*TIME, "--price", "1", "--connect-fee", "-1"), "connect-fee: must be plain USD"),
    ((*TIME, "--price", "1", "--org", "0"), "org: must be a whole number"),
    ((*TIME, "--price", "1", "--org", "9"), "ORG: there is no org 9"),
    ((*TIME, "--price", "1", "--csv", "--json"), "csv: choose one"),
    ((*TIME, "--price", "1", "--key", "k"), "key: --key and --reason go with --apply"),
    ((*TIME, "--price", "1", "--apply", "--key", "k"), "key: --apply needs --key and --reason"),
    ((*TIME, "--price", "1", "--apply", "--key", " ", "--reason", "x"), "key: must be 1 to 200"),
    ((*TIME, "--price", "1", "--apply", "--key", "k", "--reason", ""), "reason: must be 1 to 500"),
    (("--tier", "gold", *TIME[2:], "--price", "1"), "tier: there is no tier 'gold'"),
    ((*TIME[:5], "2026-04-01T00:00:00Z", "--price", "1"), "to: must be later than from"),
    ((*TIME[:3], "2026-04-01", *TIME[4:], "--price", "1"), "from: must be an ISO 8601 date and time"),
]


def test_bad_options_are_told_by_name(billed: Cli) -> None:
    found = [(arguments, billed.fail("reprice", *arguments)) for arguments, _ in BAD]
    assert [
        (arguments, said)
        for (arguments, said), (_, wanted) in zip(found, BAD, strict=True)
        if not said.startswith(wanted)
    ] == []


def test_it_adjusts_once_opens_gates_and_is_in_the_log_and_in_the_calls_story(
    billed: Cli, redis_client: redis.Redis
) -> None:
    billed.run("adjust", "2", "--cents", "70", "--reason", "x", "--key", "k")
    found = billed.json("reprice", *APPLIED)
    assert (found["key"], found["applied"], found["totals"]["difference_cents"]) == ("april", True, -24)
    adjusted = {each["org_id"]: each["transaction_id"] for each in found["results"]}
    assert set(adjusted) == {1, 2}
    assert [gate.state for gate in Gates(redis_client).read([1, 2])] == ["exhausted", "open"]
    assert billed.json("org", "show", "2")["balance_cents"] == -80 + 70 + 20

    assert (
        "Nothing changed: the key april has adjusted 2 orgs before." in billed.run("reprice", *APPLIED).stdout
    )
    assert "key: 'april' was used before" in billed.fail("reprice", *APPLIED[:7], "0.05", *APPLIED[8:])

    log = [each for each in billed.json("log")["results"] if each["action"] == "reprice"]
    assert [(each["org_id"], each["subject"], each["reason"]) for each in log] == [
        (2, "april", "Billed at last year's price"),
        (1, "april", "Billed at last year's price"),
        (None, "april", "Billed at last year's price"),
    ]
    assert log[1]["details"] == {
        "amount_cents": 4,
        "transaction_id": adjusted[1],
        "balance_after_cents": -12,
    }
    billed.run("reprice", *APPLIED[:7], "0.05", "--apply", "--key", "second", "--reason", "Less still")
    story = billed.json("call", "show", "1", "7")
    assert [(each["key"], each["amount_cents"]) for each in story["repricings"]] == [
        ("second", -10),
        ("april", -12),
    ]
    assert story["repricings"][1]["terms"]["usd_per_minute"] == "0.06"
    assert (
        "april: -0.12 USD at $0.06 per minute; Billed at last year's price"
        in billed.run("call", "show", "1", "7").stdout
    )
    assert billed.json("call", "show", "3", "7")["repricings"] == []


def test_killed_between_two_orgs_the_same_key_sees_to_the_rest(billed: Cli, database: Database) -> None:
    armed = Cli({**billed.settings, ENVIRONMENT_VARIABLE: CrashPoint.REPRICE_AFTER_ORG.value})
    assert armed.process("reprice", *APPLIED).returncode == -9
    assert transactions(database) == 4
    assert "has not seen to every org yet" in billed.fail(
        "reprice", *TIME, "--price", "1", "--apply", "--key", "other", "--reason", "x"
    )
    done = billed.process("reprice", *APPLIED, "--json")
    assert [each["org_id"] for each in json.loads(done.stdout)["results"]] == [1, 2]
    assert transactions(database) == 5
    assert billed.json("audit")["passed"]

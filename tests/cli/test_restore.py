"""A real dump, restored by following docs/how-to/backup-and-restore.md: the bills are what they were, to the cent."""

import json
import re
import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from sqlalchemy import Engine, make_url, text

from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.rules.money import parse_usd
from metering.rules.pricing import Price
from metering.sandbox.servers.postgres import Postgres
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.docs.pages import page, section
from tests.spine.billing import assert_sound, event, prepare, price, push, run_meters
from tests.stripe_away import NO_STRIPE

PAGE: Final = page("how-to/backup-and-restore.md")
BOLT_FROM: Final = datetime(2026, 4, 1, tzinfo=UTC)
REEF_FROM: Final = datetime(2026, 4, 10, tzinfo=UTC)

pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]


def commands(title: str) -> list[list[str]]:
    """What the page has the operator run under a heading."""
    lines = re.findall(
        r"^ {4}docker compose run --rm (?:-T )?operator (.*)$", section(PAGE, title), re.MULTILINE
    )
    assert lines, title
    return [shlex.split(line.split(" < ")[0]) for line in lines]


def postgres(program: str, url: str, *arguments: str, **options: Any) -> bytes:
    """Run a program of Postgres's on a database, as the page does."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    done = subprocess.run(
        [Postgres.program().parent / program, "-d", plain, *arguments],
        capture_output=True,
        check=False,
        timeout=200,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return bytes(done.stdout)


def calls() -> list[dict[str, Any]]:
    """Around every price's beginning, of both orgs and tiers, with durations that cross increments."""
    found: list[dict[str, Any]] = []
    for org_id in (42, 43):
        for tier, begins in (("bolt", BOLT_FROM), ("reef", REEF_FROM)):
            for number, offset_s in enumerate((-3_600, -0.001, 0, 0.001, 3_600, 86_400)):
                for duration_s in (7.5, 60, 61.000001):
                    ended_at = begins + timedelta(seconds=offset_s + duration_s)
                    found.append(
                        event(
                            call_id=len(found) + 1,
                            org_id=org_id,
                            tier=tier,
                            duration_seconds=duration_s,
                            ended_at=ended_at.isoformat(),
                            metadata={"number": number},
                        )
                    )
    return found


def bills(engine: Engine) -> dict[tuple[int, int], tuple[Any, ...]]:
    """What each call cost, and why, by org and call."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT org_id, call_id, amount_cents, description, billable_seconds, rate_microusd_per_minute,"
                " increment_first_s, increment_next_s FROM transactions WHERE kind = 'debit'"
            )
        )
        return {(row.org_id, row.call_id): tuple(row[2:]) for row in rows}


def balances(engine: Engine) -> dict[int, int]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT org_id, balance_cents FROM accounts"))
        return {row.org_id: row.balance_cents for row in rows}


def cli_of(database: Database, redis_url: str) -> Cli:
    return Cli({"METERING_DATABASE_URL": database.url, "METERING_REDIS_URL": redis_url, **NO_STRIPE})


def dated(tier: str, usd: str, start: datetime, next_s: int) -> Price:
    return Price(tier, start, parse_usd(usd), next_s, next_s, 0, 0)


def set_in_time(engine: Engine, new: Price) -> None:
    """As the operator did before the price began."""
    assert new.in_force_from is not None
    set_at = new.in_force_from - timedelta(days=1)
    with transaction(engine) as connection:
        assert set_price(connection, new, lambda: set_at).changed


def test_the_bills_are_what_they_were_to_the_cent(
    database: Database, empty_database: Database, redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    before = cli_of(database, redis_url)
    prepare(database.engine, org_ids=[42], prices=[price("bolt", "0.08")])
    before.run("adjust", "42", "--cents", "500", "--reason", "First credit", "--key", "first-42")
    early = event(call_id=1_000, org_id=42, ended_at="2026-03-20T12:00:00Z")
    push(redis_client, [early])
    run_meters(database.engine, redis_client)
    dump = postgres("pg_dump", database.admin_url, "-Fc")

    prepare(database.engine, org_ids=[], prices=[price("reef", "0.05")])
    for new in (dated("bolt", "0.10", BOLT_FROM, 60), dated("reef", "0.06", REEF_FROM, 6)):
        set_in_time(database.engine, new)
    (org,) = commands("Orgs")
    (adjust,) = commands("Credits by hand")
    for words in (org, adjust):
        before.run(*words)
    push(redis_client, calls())
    run_meters(database.engine, redis_client)
    assert_sound(database.engine)
    billed, left = bills(database.engine), balances(database.engine)
    assert len(billed) == len(calls()) + 1

    postgres(
        "pg_restore",
        empty_database.admin_url,
        "--exit-on-error",
        "--single-transaction",
        "--clean",
        "--if-exists",
        input=dump,
    )
    restored = cli_of(empty_database, redis_url)
    assert "60 s ahead" in restored.fail("tier", "set", "bolt", "0.10", "--from", "2026-04-01T00:00:00Z")
    for title in ("Orgs", "Prices", "Credits by hand"):
        for words in commands(title):
            restored.run(*words)
    (push_words,) = commands("Calls")
    records = tmp_path / "calls.jsonl"
    records.write_text("".join(json.dumps(each) + "\n" for each in [early, *calls()]), encoding="utf-8")
    restored.run(*push_words[:-1], str(records))
    run_meters(empty_database.engine, redis_client)

    assert bills(empty_database.engine) == billed
    assert balances(empty_database.engine) == left
    assert_sound(empty_database.engine)
    for words in commands("Prices"):
        if "--restored" in words:
            assert restored.json(*words)["changed"] is False  # once more changes nothing
    key = restored.json(*commands("API keys")[0])
    assert key["api_key"].startswith("sk_live_")


def test_the_page_names_what_must_come_back() -> None:
    for title in ("Orgs", "Prices", "Calls", "Credits by hand", "API keys", "Settings", "Payments", "Gates"):
        assert section(PAGE, title)
    assert PAGE.index("### Prices") < PAGE.index("### Calls")

# ruff: noqa: T201 - a table on the terminal is the point
"""What a turn of the reload rule costs: `python -m tests.benchmarks.ask_reload_rule [ORGS [PAUSED]]`.

100,000 orgs that have reloads enabled, 20,000 of them below their minimum and paused, on embedded servers of its own. Compared
are a turn as the jobs take it, and asking for every org, which every turn did before; the median of a few turns counts. Then
some pauses end at once, and the turn that finds them is measured.
"""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, text

from db.attempts.reload_rule import ask_due, ask_every, ask_page
from metering.runtime.clock import system_clock, to_milliseconds
from metering.trials.bench.fixture import making_fixture

TIMES = 5
ENDING = 200
"""So many pauses end at once."""

ACCOUNTS = text("""
    INSERT INTO accounts (org_id, name, created_at, balance_cents, auto_reload_enabled, auto_reload_minimum_cents,
        auto_reload_amount_cents, stripe_customer_id, default_payment_method_id)
    SELECT n, 'Org', :at, CASE WHEN n <= :paused THEN 0 ELSE 2000 END, true, 1000, 5000, 'cus_' || n, 'pm_' || n
    FROM generate_series(1, CAST(:orgs AS bigint)) AS n
""")
# Half of them until a time, half until a card or a setting changes; spread over the orgs' ids as they come.
STATES = text("""
    INSERT INTO reload_states (org_id, pause_code, pause_lifts_with, paused_at, paused_until, skip_reason, skip_since, ask_at)
    SELECT n, 'insufficient_funds', CASE WHEN timed THEN 'time' ELSE 'change' END, :at, until, 'paused', :at, until
    FROM (
        SELECT n, n % 2 = 0 AS timed, CASE WHEN n % 2 = 0 THEN CAST(:at AS timestamptz) + interval '24 h' END AS until
        FROM generate_series(1, CAST(:paused AS bigint)) AS n
    ) AS states
""")
END_SOME = text("""
    UPDATE reload_states SET paused_until = :at, ask_at = :at WHERE org_id <= 2 * :ending AND pause_lifts_with = 'time'
""")


def median_ms(work: Callable[[], object]) -> float:
    """How long it takes, the median of a few times."""
    took_ms = []
    for _ in range(TIMES):
        began_s = time.perf_counter()
        work()
        took_ms.append((time.perf_counter() - began_s) * 1_000)
    return statistics.median(took_ms)


def fill(engine: Engine, orgs: int, paused: int, now: datetime) -> None:
    """Make the orgs and their pauses."""
    with engine.begin() as connection:
        connection.execute(ACCOUNTS, {"at": now, "orgs": orgs, "paused": paused})
        connection.execute(STATES, {"at": now, "paused": paused})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE accounts, reload_states"))


def main() -> None:
    """Fill and ask."""
    orgs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    paused = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    now = to_milliseconds(system_clock())
    data_dir = Path(tempfile.mkdtemp(prefix="metering-reloads-"))
    try:
        with making_fixture(data_dir) as fixture:
            engine = fixture.engine
            fill(fixture.owner, orgs, paused, now)
            due_ms = median_ms(lambda: list(ask_due(engine)))
            page_ms = median_ms(lambda: ask_page(engine, 0))
            every_ms = median_ms(lambda: list(ask_every(engine)))
            with fixture.owner.begin() as connection:
                connection.execute(END_SOME, {"at": now, "ending": ENDING})
            began_s = time.perf_counter()
            made = sum(len(found.attempts) for found in ask_due(engine))
            ending_ms = (time.perf_counter() - began_s) * 1_000
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    print(f"{orgs:,} orgs, {paused:,} of them paused                         ms")
    print(f"  a turn where nothing is due                      {due_ms + page_ms:10,.1f}")
    print(f"    asking for what is due                         {due_ms:10,.1f}")
    print(f"    a page of the walk, all of it paused           {page_ms:10,.1f}")
    print(f"  the turn in which {made:,} pauses end               {ending_ms + page_ms:10,.1f}")
    print(f"  asking for every org, as each turn did before    {every_ms:10,.1f}")


if __name__ == "__main__":
    main()

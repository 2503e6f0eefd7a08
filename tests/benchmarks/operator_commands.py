# ruff: noqa: T201 - a table on the terminal is the point
"""How long operators' commands take: `python -m tests.benchmarks.operator_commands DIRECTORY [--plans] [--transactions N]`.

On embedded servers below DIRECTORY, where what is made the first time stays for the next: 100,000 orgs, 10,000,000
transactions, of which org 1 has a tenth, and rejected events, keys, cards, attempts and log to match. Each command runs in this
process `TIMES` times: beside its start-up, which is Python's, it takes what is printed, connections and printing included.
`--plans` prints what Postgres does for each statement of each command.
"""

import argparse
import contextlib
import io
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, event, make_url
from typer.main import get_command

from db.postgres.engine import make_engine
from db.postgres.schema import migrate
from metering.cli.main import app
from metering.sandbox.servers.embedded import Servers, running
from workers.usage_job import UsageJob

ORGS: Final = 100_000
TRANSACTIONS: Final = 10_000_000
TIMES: Final = 7
LIMIT_MS: Final = 200
INDEXES: Final = (
    "transactions_call_key",
    "transactions_source_key",
    "transactions_credit_key",
    "transactions_money_idx",
)

FILL: Final = """
INSERT INTO tiers (name, created_at) SELECT 'tier' || n, now() FROM generate_series(1, 20) AS n;
INSERT INTO prices (tier, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
    connect_fee_microusd, created_at)
SELECT 'tier' || n % 20 + 1, CASE WHEN n >= 20 THEN timestamptz '2020-01-01' + n * interval '1 day' END,
    80000, 60, 60, 0, 0, now()
FROM generate_series(0, 999) AS n;
INSERT INTO accounts (org_id, name, created_at, balance_cents, version, transaction_count, auto_reload_enabled,
    auto_reload_minimum_cents, auto_reload_amount_cents, stripe_customer_id, default_payment_method_id)
SELECT n, (ARRAY['Acme', 'Zenith', 'Müller', 'Orion', 'Vega', 'Nova', 'Delta', 'Kappa'])[n % 8 + 1] || ' '
        || (ARRAY['Telecom', 'Dialers', 'Support', 'Logistics', 'Care', 'Voice', 'Sales'])[n % 7 + 1] || ' ' || md5(n::text),
    timestamptz '2025-01-01' + n * interval '1 s', (n * 7919) % 100000 - 5000, 100, {each}, n % 2 = 0, 1000, 2000,
    CASE WHEN n % 2 = 0 THEN 'cus_' || n END, CASE WHEN n % 2 = 0 THEN 'pm_' || n END
FROM generate_series(1, {orgs}) AS n;
INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, call_id, stream_id, tier,
    direction, duration_us, ended_at, billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
    connect_fee_microusd)
SELECT org_id, 'debit', -16, balance_cents + 16 * ({each} - n), timestamptz '2026-01-01' + n * interval '1 hour',
    'Call billing: 2 minutes × $0.08', n, (1767225600000 + n * 3600000)::text || '-0', 'tier' || n % 20 + 1, 'outbound', 75000000,
    timestamptz '2026-01-01' + n * interval '1 hour' - interval '2 s', 120, 80000, 60, 60, 0, 0
FROM generate_series(1, {each}) AS n CROSS JOIN accounts;
INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, call_id, stream_id, tier,
    direction, duration_us, ended_at, billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
    connect_fee_microusd)
SELECT 1, 'debit', -16, balance_cents + 16 * ({big} - n), timestamptz '2026-02-01' + n * interval '1 s',
    'Call billing: 2 minutes × $0.08', 1000000 + n, (1769904000000 + n * 1000)::text || '-0', 'tier1', 'outbound', 75000000,
    timestamptz '2026-02-01' + n * interval '1 s', 120, 80000, 60, 60, 0, 0
FROM generate_series(1, {big}) AS n CROSS JOIN accounts WHERE org_id = 1;
UPDATE accounts SET transaction_count = {each} + {big} WHERE org_id = 1;
INSERT INTO rejected_events (stream_id, reason, detail, raw, raw_length_bytes, raw_sha256, received_at)
SELECT n || '-0', 'unknown_tier', 'tier: there is no tier gold', convert_to(event, 'UTF8'), length(event), sha256(event::bytea),
    now()
FROM generate_series(1, 100000) AS n, LATERAL (SELECT format(
    '{{"call_id":%s,"org_id":%s,"tier":"gold","direction":"outbound","duration_seconds":75,"ended_at":"2026-04-20T18:25:06.201Z"}}',
    5000000 + n, n % 1000 + 1) AS event) AS made;
INSERT INTO operator_log (operator, login, action, org_id, subject, details)
SELECT 'maria', 'maria', 'key create', n % 50000 + 1, n, '{{}}' FROM generate_series(1, 200000) AS n;
INSERT INTO api_keys (org_id, key_sha256, hint, created_at) SELECT n, sha256(n::text::bytea), right(md5(n::text), 4), now()
FROM generate_series(1, {orgs}) AS n;
INSERT INTO payment_methods (org_id, payment_method_id, ready_at)
SELECT n, 'pm_' || n, now() FROM generate_series(2, {orgs}, 2) AS n;
INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, status, look_at,
    finished_at)
SELECT n % {orgs} + 1, gen_random_uuid(), 'top_up', 2000, 'cus_' || n, 'pm_' || n, now(), 'succeeded', now(), now()
FROM generate_series(1, 200000) AS n;
INSERT INTO reload_states (org_id, pause_code, pause_lifts_with, paused_at, ask_at)
SELECT n, 'stolen_card', 'card', now(), NULL FROM generate_series(2, {orgs}, 10) AS n;
"""

COMMANDS: Final = (
    "org find müller",
    "org find md5none",
    "org find 4711",
    "org find ac",
    "org find acme --limit 50 --offset 10000",
    "org show 1",
    "org show 4711",
    "org list",
    "org list --state exhausted",
    "org list --below 500",
    "call show 1 1500000",
    "call show 4711 42",
    "call show 5 5000004",
    "call list 1",
    "call list 4711",
    "key list 4711",
    "key find 00aa",
    "log",
    "log --org 4711",
    "log --operator maria --limit 10",
    "rejected list",
    "reload list",
    "tier list",
    "operator list",
)


@contextlib.contextmanager
def filled(directory: Path, transactions: int) -> Iterator[Servers]:
    """The servers, with what is measured on; made where it isn't there."""
    with running(directory) as servers:
        admin = make_url(servers.owner_database_url).set(
            username=make_url(servers.admin_database_url).username
        )
        url = admin.set(drivername="postgresql").render_as_string(hide_password=False)
        if not (directory / "filled").exists():
            owner = make_engine(servers.owner_database_url, application_name="bench")
            migrate(owner)
            owner.dispose()
            big = transactions // 10
            with psycopg.connect(url, autocommit=True) as connection:
                kept = {
                    name: connection.execute("SELECT pg_get_indexdef(%s::regclass)", [name]).fetchone()
                    for name in INDEXES
                }
                for name in INDEXES:
                    connection.execute(f"DROP INDEX {name}".encode())
                script = FILL.format(orgs=ORGS, each=(transactions - big) // ORGS, big=big)
                for statement in script.split(";\n"):
                    if statement.strip():
                        began = time.monotonic()
                        connection.execute(statement.encode())
                        print(f"{time.monotonic() - began:6.1f} s  {statement.strip()[:60]}", flush=True)
                for name, definition in kept.items():
                    assert definition is not None, name
                    connection.execute(definition[0].encode())
                connection.execute("VACUUM (ANALYZE)")
            (directory / "filled").touch()
        count_usage(servers)
        yield servers


def count_usage(servers: Servers) -> None:
    """As the jobs do within seconds: until then `org show` reads an org's whole history."""
    engine = make_engine(servers.database_url, application_name="bench")
    began = time.monotonic()
    while UsageJob(engine, rest=0).count(threading.Event()):
        pass
    engine.dispose()
    print(f"{time.monotonic() - began:6.1f} s  daily usage", flush=True)


def run(command: str) -> float:
    """Run a command in this process, and give how many milliseconds it took."""
    out = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = get_command(app)(command.split(), standalone_mode=False)
    if status:
        raise SystemExit(f"metering {command} ends with {status}: {out.getvalue()}")
    return (time.perf_counter() - began) * 1000


def statements_of(command: str) -> list[tuple[str, Any]]:
    """What a command says to Postgres through SQLAlchemy."""
    said: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, ____: Any) -> None:
        said.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        run(command)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return said


def show_plans(url: str, command: str) -> None:
    print(f"\n=== metering {command}")
    with psycopg.connect(url) as connection:
        for statement, parameters in statements_of(command):
            if (
                not re.match(r"\s*(SELECT|WITH)", statement)
                or "alembic" in statement
                or "pg_catalog" in statement
            ):
                continue
            print(f"\n{' '.join(statement.split())[:200]}")
            for (line,) in connection.execute(
                f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}".encode(), parameters
            ):
                print(f"    {line}")
            connection.rollback()


def main() -> None:
    """Fill, and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--transactions", type=int, default=TRANSACTIONS)
    parser.add_argument("--command", action="append")
    asked = parser.parse_args()
    with filled(asked.directory, asked.transactions) as servers:
        os.environ |= {"METERING_DATABASE_URL": servers.database_url, "METERING_REDIS_URL": servers.redis_url}
        slow = 0
        plain = (
            make_url(servers.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        for command in asked.command or COMMANDS:
            if asked.plans:
                show_plans(plain, command)
                continue
            run(command)
            took_ms = [run(command) for _ in range(TIMES)]
            slow += statistics.median(took_ms) > LIMIT_MS
            print(
                f"{statistics.median(took_ms):7.1f} ms (at most {max(took_ms):7.1f})  metering {command}",
                flush=True,
            )
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()

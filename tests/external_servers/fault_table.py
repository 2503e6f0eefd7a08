"""Each fault of the servers under a running installation: how long until each role is right again, and what was lost or doubled.

Run: python -m tests.external_servers.fault_table [--only WORDS]

Every role runs as a process, on a Postgres with a standby (METERING_DATABASE_URL names both, in libpq's key-value shape) and on a
Valkey with a replica and three Sentinels. Calls are pushed all the time. Seconds are counted from when a server that takes writes
can be reached again. What each role must do to be right:

- meter: a call pushed then is debited.
- jobs: a gate that was made wrong then is mended; it looks every five seconds.
- api: /readyz, a read and a change of the account are answered 200.
- client: `metering.client` pushes a call and asks a gate.
- command: `metering status` ends with 0.

Lost: confirmed calls without a debit, when all is over. Doubled: debits more than calls, or money at Stripe that isn't credited.
"""

import argparse
import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
import structlog
from psycopg.conninfo import make_conninfo

from db.accounts.api_keys import create_key
from db.ledger.adjustments import adjust
from db.postgres.engine import make_engine, transaction
from db.postgres.schema import migrate
from metering.client import MeteringClient, TelephonyError
from metering.console.roles import Role, Supervisor
from metering.runtime.clock import system_clock
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.servers.postgres import APPLICATION_ROLE, DATABASE, OWNER_ROLE, PORT
from metering.sandbox.servers.replicated_postgres import ReplicatedPostgres, execute
from metering.sandbox.stripe.sandbox import API_KEY, WEBHOOK_SECRET, StripeSandbox
from metering.trials.chaos.links import HOST, Links
from tests.cli.conftest import Cli
from tests.external_servers.pgbouncer import PgBouncer, pooled
from tests.external_servers.process import free_port
from tests.external_servers.valkeys import Watched, watched
from tests.spine.billing import balances, debits, event, prepare, price
from tests.waiting import wait_until

ROLES: Final = ("meter", "jobs", "api")
PAYS, MENDED = 1, 2
"""Orgs: whose calls are billed, and whose gate is damaged."""
TOP_UP_CENTS: Final = 1_000
START_LIMIT_S: Final = 120.0
WATCHED_S: Final = 90.0
PUSH_EVERY_S: Final = 0.05
DRAIN_LIMIT_S: Final = 120.0


@dataclass
class Installation:
    """All of it."""

    postgres: ReplicatedPostgres
    valkey: Watched
    links: Links
    stripe: StripeSandbox
    api: CustomerApi
    cli: Cli
    log_path: Path
    bouncer: PgBouncer | None
    confirmed: list[int] = field(default_factory=list)
    call_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    topped_up_cents: int = 0

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """On the primary, as superuser, in the database `postgres`."""
        return execute(self.postgres.primary, statement)

    @contextmanager
    def operator(self) -> Iterator[redis.Redis]:
        """At the Valkey that takes writes now."""
        yield self.valkey.primary().client

    def push(self, client: MeteringClient) -> bool:
        """One call more; whether it was confirmed."""
        number = next(self.call_ids)
        try:
            client.push(event(call_id=number, org_id=PAYS))
        except TelephonyError:
            return False
        self.confirmed.append(number)
        return True

    def billed(self) -> list[int]:
        """Calls that were debited, as the primary has it."""
        engine = make_engine(self.postgres.primary.url(APPLICATION_ROLE, DATABASE), application_name="table")
        try:
            return [row.call_id for row in debits(engine)]
        finally:
            engine.dispose()

    def balance_cents(self) -> int:
        engine = make_engine(self.postgres.primary.url(APPLICATION_ROLE, DATABASE), application_name="table")
        try:
            return balances(engine)[PAYS]
        finally:
            engine.dispose()


@contextmanager
def installed(directory: Path, *, bouncer: bool) -> Iterator[Installation]:
    """Everything running, and one customer with a saved card."""
    with ExitStack() as stack:
        postgres = stack.enter_context(ReplicatedPostgres(directory / "postgres"))
        valkey = stack.enter_context(watched(directory / "valkey"))
        links = stack.enter_context(Links())
        ports = [
            links.add(name, server.socket_path)
            for name, server in (("first", postgres.primary), ("second", postgres.standby))
        ]
        with_owner = make_engine(postgres.primary.url(OWNER_ROLE, DATABASE), application_name="table")
        migrate(with_owner)
        with_owner.dispose()
        engine = make_engine(postgres.primary.url(APPLICATION_ROLE, DATABASE), application_name="table")
        prepare(engine, org_ids=[PAYS, MENDED], prices=[price("bolt", "0.08")])
        with transaction(engine) as connection:
            key = create_key(connection, PAYS, system_clock()).api_key
        for org_id in (PAYS, MENDED):
            with transaction(engine) as connection:
                adjust(connection, org_id, amount_cents=1_000_000, reason="t", key="start")
        engine.dispose()
        pooler = None
        conninfo = make_conninfo(
            host=f"{HOST},{HOST}",
            port=",".join(map(str, ports)),
            dbname=DATABASE,
            user=APPLICATION_ROLE,
            sslmode="disable",
        )
        if bouncer:
            pooler = stack.enter_context(pooled(directory / "pgbouncer", postgres.primary.sockets_dir, PORT))
            conninfo = pooler.url(APPLICATION_ROLE, DATABASE)
        port = free_port()
        stripe = stack.enter_context(StripeSandbox(webhook_url=f"http://{HOST}:{port}/v1/stripe/webhook"))
        settings = {
            "METERING_DATABASE_URL": conninfo,
            "METERING_REDIS_URL": valkey.url,
            "METERING_HTTP_PORT": str(port),
            "STRIPE_API_KEY": API_KEY,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "STRIPE_API_BASE": stripe.url,
        }
        log_path = directory / "roles.log"
        roles = [Role(name, (name,)) for name in ROLES]
        stack.enter_context(Supervisor(roles, say=say, log_path=log_path, settings=settings))
        found = Installation(
            postgres, valkey, links, stripe, CustomerApi(port, key), Cli(settings), log_path, pooler
        )
        for said in ("jobs are running", "meter is ready", "the API is served"):
            wait_until(lambda said=said: said in found.log, limit_s=START_LIMIT_S)  # type: ignore[misc]
        wait_until(lambda: answered(found, "GET", "/readyz") == 200, limit_s=START_LIMIT_S)
        made = found.api.ask("POST", "/v1/billing/setup-intent")
        assert made is not None
        method = stripe.confirm_setup(made.body["setup_intent_id"])
        assert answered(found, "POST", "/v1/billing/default-payment-method", payment_method_id=method) == 200
        yield found


def answered(found: Installation, verb: str, path: str, **body: object) -> int | None:
    answer = found.api.ask(verb, path, body or None)
    return None if answer is None else answer.status


Fault = Callable[[Installation], None]
"""Does it, and returns when a server that takes writes can be reached again."""


def switch_over(found: Installation) -> None:
    found.postgres.hand_over()


def kill_primary(found: Installation) -> None:
    """Each commit is on both servers before it is acknowledged: without that, what the standby lacks would be lost."""
    found.postgres.commit_on_both(wanted=True)
    time.sleep(3)
    found.postgres.fail_over()


def read_only_and_back(found: Installation) -> None:
    found.sql(f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on")
    end_sessions(found)
    wait_until(lambda: answered(found, "GET", "/readyz") == 503, limit_s=60)
    time.sleep(3)
    found.sql(f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only")


def end_sessions(found: Installation) -> None:
    found.sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{DATABASE}'")  # noqa: S608


def idle_sessions_cut(found: Installation) -> None:
    """By `idle_session_timeout = 3s`, for half a minute; then it stays so while everybody works."""
    found.sql("ALTER SYSTEM SET idle_session_timeout = '3s'")
    found.sql("SELECT pg_reload_conf()")
    time.sleep(8)


def sessions_ended(found: Installation) -> None:
    end_sessions(found)


def silent_network(found: Installation) -> None:
    for name in ("first", "second"):
        found.links.stall(name)
    time.sleep(12)
    found.links.heal_all()


def wrong_login(found: Installation) -> None:
    """As where a password is wrong: the server answers, and refuses; health says so, and nothing waits in silence."""
    found.sql(f"ALTER ROLE {APPLICATION_ROLE} NOLOGIN")
    end_sessions(found)
    wait_until(lambda: "a server refuses, and waiting alone won't help" in found.log, limit_s=60)
    assert answered(found, "GET", "/readyz") == 503
    found.sql(f"ALTER ROLE {APPLICATION_ROLE} LOGIN")


def right_revoked(found: Installation) -> None:
    execute_in_database(found, f"REVOKE SELECT ON accounts FROM {APPLICATION_ROLE}")  # noqa: S608 - our own words
    wait_until(lambda: answered(found, "GET", "/v1/billing") == 503, limit_s=60)
    assert answered(found, "GET", "/readyz") == 503
    execute_in_database(found, f"GRANT SELECT ON accounts TO {APPLICATION_ROLE}")


def execute_in_database(found: Installation, statement: str) -> None:
    engine = make_engine(found.postgres.primary.url("postgres", DATABASE), application_name="table")
    with transaction(engine) as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def valkey_switched(found: Installation) -> None:
    found.valkey.switch_over()


def valkey_killed(found: Installation) -> None:
    old = found.valkey.fail_over()
    old.start()  # the Sentinels make it the replica of the new one


def valkey_password_changed(found: Installation) -> None:
    """Everybody is refused until it is as it was."""
    with found.operator() as client:
        client.acl_setuser("default", enabled=True, reset_passwords=True, passwords=["+other"])
        client.client_kill_filter(skipme=True, _type="normal")
        wait_until(lambda: "a server refuses, and waiting alone won't help" in found.log, limit_s=60)
        client.acl_setuser("default", enabled=True, nopass=True)


def valkey_clients_cut(found: Installation) -> None:
    with found.operator() as client:
        client.client_kill_filter(skipme=True, _type="normal")


def pooler_restarted(found: Installation) -> None:
    assert found.bouncer is not None
    found.bouncer.stop()
    time.sleep(2)
    found.bouncer.start()


def pooler_killed(found: Installation) -> None:
    assert found.bouncer is not None
    found.bouncer.kill()
    time.sleep(2)
    found.bouncer.start()


def pooler_moved(found: Installation) -> None:
    """Postgres switched over behind it, and the pooler told of it."""
    assert found.bouncer is not None
    found.postgres.hand_over()
    found.bouncer.lead_to(found.postgres.primary.sockets_dir, PORT)


DIRECT: Final[Mapping[str, Fault]] = {
    "Postgres: switched over, both hosts in the URL": switch_over,
    "Postgres: primary killed (-9), standby promoted": kill_primary,
    "Postgres: database read-only, and back": read_only_and_back,
    "Postgres: all sessions ended": sessions_ended,
    "Postgres: idle sessions cut after 3 s": idle_sessions_cut,
    "Postgres: network silent for 12 s": silent_network,
    "Postgres: login refused, and back": wrong_login,
    "Postgres: a right revoked, and back": right_revoked,
    "Valkey: switched over by Sentinel": valkey_switched,
    "Valkey: primary killed (-9), Sentinel": valkey_killed,
    "Valkey: password changed, and back": valkey_password_changed,
    "Valkey: all clients cut": valkey_clients_cut,
}
POOLED: Final[Mapping[str, Fault]] = {
    "PgBouncer: restarted": pooler_restarted,
    "PgBouncer: killed (-9)": pooler_killed,
    "PgBouncer: Postgres switched over behind it": pooler_moved,
}


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command's output


def seconds_until_right(conditions: Mapping[str, Callable[[], bool]]) -> dict[str, float]:
    """When each came true, asked side by side: one that hangs holds up none of the others. Infinity: not at all."""
    began_s = time.monotonic()

    def when(true: Callable[[], bool]) -> float:
        while time.monotonic() < began_s + WATCHED_S:
            try:
                if true():
                    return time.monotonic() - began_s
            except Exception:  # noqa: BLE001, S110 - it isn't right yet
                pass
            time.sleep(0.05)
        return float("inf")

    with ThreadPoolExecutor(len(conditions)) as threads:
        return dict(zip(conditions, threads.map(when, conditions.values()), strict=True))


def measure(found: Installation, fault: Fault) -> tuple[dict[str, float], int, int]:
    """Seconds until each role is right; lost; doubled."""
    stop = threading.Event()
    found.log_path.write_text("")
    with (
        MeteringClient(found.valkey.url, timeout_s=1.0, tries=2, replicas=0) as client,
        ThreadPoolExecutor(1) as threads,
    ):

        def push_on() -> None:
            while not stop.wait(PUSH_EVERY_S):
                found.push(client)

        pushing = threads.submit(push_on)
        try:
            fault(found)
            took_s = _until_right(found)
        finally:
            stop.set()
            pushing.result()
    bring_back(found)
    cents_before = found.topped_up_cents
    wait_until(
        lambda: answered(found, "POST", "/v1/billing/top-up", amount_cents=TOP_UP_CENTS) == 201, limit_s=60
    )
    found.topped_up_cents = cents_before + TOP_UP_CENTS
    expected = set(found.confirmed)
    deadline_s = time.monotonic() + DRAIN_LIMIT_S
    while not expected <= set(found.billed()) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    billed = found.billed()
    lost = len(expected - set(billed))
    credited = found.balance_cents() + 16 * len(billed) - 1_000_000
    doubled = len(billed) - len(set(billed)) + (credited != found.stripe.totals().received_cents)
    return took_s, lost, doubled


def bring_back(found: Installation) -> None:
    """What a fault has left, as it was: a standby that streams, no time-out."""
    if found.postgres.standby.pid() is None:
        found.postgres.rebuild_standby()
    found.postgres.commit_on_both(wanted=False)
    found.sql("ALTER SYSTEM RESET idle_session_timeout")
    found.sql("SELECT pg_reload_conf()")


def _until_right(found: Installation) -> dict[str, float]:
    fresh: list[int] = []
    with MeteringClient(found.valkey.url, timeout_s=1.0, tries=1) as client:

        def pushed() -> bool:
            if found.push(client):
                fresh.append(found.confirmed[-1])
                return client.gate(PAYS).open
            return False

        def billed() -> bool:
            return bool(fresh) and bool(set(fresh) & set(found.billed()))

        def damaged() -> bool:
            with found.operator() as operator:
                operator.hset(
                    f"gate:{MENDED}", mapping={"state": "exhausted", "balance_cents": -1, "version": 1}
                )
            return True

        def mended() -> bool:
            with found.operator() as operator:
                return operator.hget(f"gate:{MENDED}", "state") == b"open"

        def served() -> bool:
            asked = [("GET", "/readyz"), ("GET", "/v1/billing")]
            changed = answered(found, "PATCH", "/v1/billing", auto_reload_enabled=False)
            return changed == 200 and all(answered(found, *each) == 200 for each in asked)

        wait_until(damaged, limit_s=30)
        return seconds_until_right(
            {
                "meter": billed,
                "jobs": mended,
                "api": served,
                "client": pushed,
                "command": lambda: found.cli.process("status").returncode == 0,
            }
        )


def main() -> int:
    """Print the table; give 1 if anything was lost or doubled, or didn't become right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    columns = ("meter", "jobs", "api", "client", "command")
    say(f"{'seconds until right':50}" + "".join(f"{name:>9}" for name in (*columns, "lost", "doubled")))
    wrong = False
    for faults, bouncer in ((DIRECT, False), (POOLED, True)):
        chosen = {name: fault for name, fault in faults.items() if given.only.lower() in name.lower()}
        if not chosen:
            continue
        with (
            tempfile.TemporaryDirectory() as directory,
            installed(Path(directory) / "i", bouncer=bouncer) as found,
        ):
            for name, fault in chosen.items():
                took_s, lost, doubled = measure(found, fault)
                wrong = wrong or bool(lost or doubled) or max(took_s.values()) == float("inf")
                row = "".join(f"{took_s[column]:9.1f}" for column in columns)
                say(f"{name:50}{row}{lost:9}{doubled:9}")
            audited = found.cli.process("audit", "--stripe")
            say(f"{'metering audit --stripe afterwards':50}{'ok' if audited.returncode == 0 else 'WRONG':>9}")
            wrong = wrong or audited.returncode != 0
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())

"""Each role of the product has a database user that can do its work, and nothing else (docs/explanation/guarantees.md)."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import pytest
import redis
from psycopg import errors
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from db.accounts.api_keys import create_key, find_org
from db.audit.full import run_audit
from db.audit.passes import read_standing
from db.ledger.balances import raise_versions
from db.ledger.rejections import list_rejected
from db.ledger.transaction_list import PageOfList, TransactionFilter, list_transactions
from db.postgres.blockers import end_blockers
from db.postgres.engine import driver_connection, make_engine, transaction
from db.postgres.schema import check_schema
from metering.payments.cards import create_setup_intent
from metering.payments.outcomes import CardDeclined
from metering.rules.payments import AttemptKind
from metering.runtime.clock import system_clock
from metering.sandbox.stripe.faults import RequestFault
from metering.signals.gates import Gates
from metering.signals.reload_signals import publish_overdue
from tests.conftest import Database
from tests.db import execute_as
from tests.db.ledger.test_append_only import BEYOND_THE_RIGHTS_OF_THE_APPLICATION, NOW
from tests.payments.world import World, make_world
from tests.spine.billing import event, prepare, price, push, running_meters
from tests.waiting import wait_until
from workers.audit_job import AuditJob
from workers.stream import backlog

ROLES = ("metering_meter", "metering_api", "metering_jobs")
APPLICATION = "metering_app"


def url_of(database: Database, role: str) -> str:
    return make_url(database.url).set(username=role).render_as_string(hide_password=False)


@pytest.fixture
def engines(database: Database) -> Iterator[Mapping[str, Engine]]:
    """An engine for each role."""
    with ExitStack() as stack:
        made = {}
        for role in ROLES:
            engine = make_engine(
                url_of(database, role), application_name=role, pool_size=4, lock_timeout_ms=5_000
            )
            stack.callback(engine.dispose)
            made[role] = engine
        yield made


@dataclass(frozen=True)
class Staff:
    """One installation, as the operator, the API and the jobs work on it."""

    operator: World
    api: World
    jobs: World


@pytest.fixture
def staff(database: Database, engines: Mapping[str, Engine], redis_client: redis.Redis) -> Iterator[Staff]:
    """Orgs 1 and 2, which the operator has made, and a tier."""

    def as_role(role: str) -> World:
        payments = replace(operator.payments, engine=engines[role])
        return replace(operator, engine=engines[role], payments=payments)

    prepare(database.engine, org_ids=[2], prices=[price("bolt", "0.08")])
    with make_world(database, redis_client, at=system_clock()) as operator:
        yield Staff(operator, as_role("metering_api"), as_role("metering_jobs"))


def bill(engine: Engine, client: redis.Redis, *events: Mapping[str, object] | bytes) -> None:
    """Let a meter that connects through `engine` bill events."""
    push(client, events)
    with running_meters(engine, client):
        wait_until(lambda: backlog(client).length == 0, limit_s=20)


def suspend_and_resume(staff: Staff, meter: Engine, client: redis.Redis) -> None:
    """A suspended org's calls are billed, its customer pays, its gate is restored; by each with its own rights."""
    staff.operator.suspend_org()
    bill(meter, client, event(call_id=3))
    staff.api.save_card()
    staff.api.top_up(2_000)
    client.flushdb()
    staff.jobs.mend_gates()
    assert Gates(client).read([1])[0].state == "suspended"
    staff.operator.resume_org()


def test_each_role_does_all_of_its_work_with_its_own_rights(
    staff: Staff, engines: Mapping[str, Engine], redis_client: redis.Redis
) -> None:
    api, jobs, meter = staff.api, staff.jobs, engines["metering_meter"]
    for engine in engines.values():
        check_schema(engine)
    with transaction(staff.operator.engine) as connection:
        key = create_key(connection, 1, NOW)
    with transaction(api.engine) as connection:
        assert find_org(connection, key.api_key) == 1

    # A customer's first day: a card, a top-up, one with a key that is repeated, a decline, a 3DS that is finished later.
    create_setup_intent(api.payments, 1)
    card = api.save_card()
    api.top_up(2_000)
    assert api.top_up(3_000, key="k").attempt_id == api.top_up(3_000, key="k").attempt_id
    api.sandbox.fail_card(card)
    assert isinstance(api.top_up(700).outcome, CardDeclined)
    api.sandbox.mend_card(card)
    api.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000, monthly_limit_cents=5_000)

    # Calls that cross the minimum, a repeat, a conflict, garbage; org 2 has no money. Then the limit is used up.
    expensive = event(call_id=1, duration_seconds=604_800)
    bill(
        meter, redis_client, expensive, expensive, event(call_id=1), b"{", event(org_id=2), event(org_id=404)
    )
    assert [each.open for each in api.attempts() if each.kind is AttemptKind.AUTO_RELOAD] == [True]
    assert api.balance() == 5_000 - 80_640
    with transaction(staff.operator.engine) as connection:
        assert list_rejected(connection, limit=9)[1] == 3

    # The jobs charge, settle what was lost, read Stripe's events, mend gates, say signals, audit.
    api.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create")
    jobs.process_due_attempts()
    jobs.clock.move(minutes=10)
    jobs.reconcile()
    assert jobs.balance() == 10_000 - 80_640
    publish_overdue(jobs.engine, jobs.payments.signals)
    bill(meter, redis_client, event(call_id=2))
    assert raise_versions(jobs.engine, {1: 1_000})[0].version == 1_001
    jobs.mend_gates()
    report = run_audit(jobs.engine)
    assert report.passed, report.violations
    job = AuditJob(jobs.engine)
    job.audit_changes(threading.Event())
    job.audit_everything(threading.Event())
    assert None not in read_standing(jobs.engine).finished_at.values()

    # What comes by webhook: everything there was once more, a refund, a dispute that is won, a card that goes.
    first = next(each["id"] for each in api.intents() if each["amount"] == 2_000)
    api.sandbox.refund(first, amount_cents=500)
    dispute = api.sandbox.open_dispute(first, amount_cents=300)
    api.sandbox.win_dispute(dispute["id"])
    api.sandbox.detach(card)
    api.deliver(*api.events())
    assert not api.account().has_payment_method
    page = list_transactions(api.engine, 1, TransactionFilter(), PageOfList(50))
    assert {each.kind for each in page.results} == {"credit", "debit", "refund", "adjustment"}
    suspend_and_resume(staff, meter, redis_client)
    staff.operator.mend_gates()
    staff.operator.assert_sound()


WRITE_A_CREDIT = """
    INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)
    VALUES (1, 'credit', 1, 1, now(), 'x', 'x')
"""
WRITE_A_DEBIT = """
    INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, call_id)
    VALUES (1, 'debit', 0, 1, now(), 'x', 1)
"""
# What a role that somebody has broken into would be used for. Each has its own reason besides: see db/migrations.
FORBIDDEN = {
    "metering_meter": [
        "SELECT * FROM daily_usage",
        "INSERT INTO daily_usage_cursors VALUES (1, 1, 1)",
        "INSERT INTO transaction_marks VALUES (1, 1, 1)",
        "DELETE FROM audit_suspects",
        "DELETE FROM owed_hold_ends",
        "SELECT * FROM api_keys",
        "SELECT * FROM idempotency_keys",
        "SELECT * FROM stripe_events",
        "INSERT INTO stripe_customers VALUES ('cus_x', 1)",
        "SELECT raw FROM rejected_events",
        "UPDATE rejected_events SET replayed_at = now()",
        WRITE_A_CREDIT,
        "UPDATE payment_attempts SET status = 'succeeded'",
        "INSERT INTO payment_attempts (org_id, status) VALUES (1, 'succeeded')",
        "UPDATE reload_states SET pause_code = NULL",
        "INSERT INTO refused_holds (org_id, noted_at, first_increment_cents) VALUES (1, now(), 1)",
        "UPDATE refused_holds SET noted_at = now()",
        "UPDATE reload_states SET lifts = '{}'",
        "UPDATE payment_attempts SET intent_created_at = now()",
        "SELECT * FROM reload_resumptions",
        "UPDATE accounts SET auto_reload_enabled = true",
        "UPDATE accounts SET auto_reload_monthly_limit_cents = NULL",
        "UPDATE accounts SET default_payment_method_id = 'x'",
        "UPDATE accounts SET suspended_at = NULL",
    ],
    "metering_api": [
        "UPDATE accounts SET suspended_at = NULL",
        "SELECT * FROM owed_hold_ends",
        "DELETE FROM audit_suspects",
        "INSERT INTO api_keys (org_id, key_sha256, hint, created_at) VALUES (1, 'x', 'x', now())",
        "UPDATE api_keys SET revoked_at = NULL",
        WRITE_A_DEBIT,
        "UPDATE payment_attempts SET amount_cents = 1",
        "UPDATE payment_attempts SET customer_id = 'x'",
        "UPDATE payment_attempts SET payment_method_id = 'x'",
        "UPDATE payment_attempts SET monthly_limit_cents = NULL",
        "DELETE FROM payment_attempts",
        "DELETE FROM transaction_marks",
        "UPDATE transaction_marks SET position = 1",
        "DELETE FROM idempotency_keys",
        "UPDATE idempotency_keys SET request_sha256 = 'x'",
        "DELETE FROM stripe_events",
        "UPDATE stripe_customers SET org_id = 1",
        "DELETE FROM stripe_customers",
        "INSERT INTO reload_resumptions (org_id, code, resumed_at, resumed_by, reason) VALUES (1, 'x', now(), 'x', 'x')",
        "UPDATE stripe_cursors SET position = now()",
        "SELECT * FROM rejected_events",
        "SELECT end_blockers(1, 1)",
    ],
    "metering_jobs": [
        "DELETE FROM daily_usage",
        "UPDATE accounts SET suspended_at = NULL",
        "INSERT INTO owed_hold_ends VALUES (1, 1, now())",
        "SELECT * FROM api_keys",
        "UPDATE stripe_customers SET org_id = 1",
        "DELETE FROM stripe_customers",
        "SELECT * FROM idempotency_keys",
        WRITE_A_DEBIT,
        "UPDATE accounts SET auto_reload_enabled = true",
        "UPDATE accounts SET auto_reload_monthly_limit_cents = NULL",
        "INSERT INTO reload_resumptions (org_id, code, resumed_at, resumed_by, reason) VALUES (1, 'x', now(), 'x', 'x')",
        "UPDATE payment_attempts SET amount_cents = 1",
        "DELETE FROM payment_attempts",
        "UPDATE rejected_events SET replayed_at = now()",
        "SELECT end_blockers(1, 1)",
    ],
}
FORBIDDEN_TO_ALL = [
    *BEYOND_THE_RIGHTS_OF_THE_APPLICATION,
    "UPDATE accounts SET name = 'x'",
    "UPDATE accounts SET max_concurrent_calls = NULL",
    "SELECT * FROM operators",
    "SELECT * FROM operator_log",
    "SELECT * FROM operator_refunds",
    "INSERT INTO operator_refunds (org_id, key, payment_intent_id, reason) VALUES (1, 'x', 'x', 'x')",
    "INSERT INTO repricings (key, tier, rate_microusd_per_minute, reason) VALUES ('x', 'bolt', 0, 'x')",
    "UPDATE repricings SET finished_at = now()",
    "INSERT INTO repriced_orgs VALUES (1, 1, 1, 1, 1, 1, 1)",
    "SELECT * FROM org_names",
    "UPDATE rejected_events SET dismissed_at = now()",
    "INSERT INTO accounts (name, created_at) VALUES ('x', now())",
    "INSERT INTO tiers (name, created_at) VALUES ('x', now())",
    "INSERT INTO prices (tier, rate_microusd_per_minute) VALUES ('bolt', 0)",
    "INSERT INTO tier_prices (tier, rate_microusd_per_minute) VALUES ('bolt', 0)",
    "UPDATE prices SET cancelled_at = now()",
    "UPDATE price_book SET version = 1",
    "SELECT pg_read_file('/etc/passwd')",
    "COPY accounts TO PROGRAM 'cat'",
    "CREATE ROLE mine",
    "TRUNCATE audited_accounts",
    "DELETE FROM refused_holds",
    "SET ROLE metering_app",
]


@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_do_what_it_need_not(database: Database, role: str) -> None:
    url = url_of(database, role)
    allowed = []
    for statement in [*FORBIDDEN[role], *FORBIDDEN_TO_ALL]:
        with suppress(errors.InsufficientPrivilege):
            execute_as(url, statement)
            allowed.append(statement)
    assert allowed == []


def test_a_meter_can_write_nothing_but_debits(database: Database) -> None:
    for kind, amount in (("credit", 1), ("refund", -1), ("adjustment", 1)):
        with pytest.raises(errors.CheckViolation, match="transactions_kind_check"):
            execute_as(
                url_of(database, "metering_meter"),
                "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description)"  # noqa: S608
                f" VALUES (1, '{kind}', {amount}, {amount}, now(), 'x')",
            )


# Columns that a role may touch, a table's own rights spread over its columns.
RIGHTS = text("""
    SELECT grantee, table_name, column_name, privilege_type FROM information_schema.column_privileges
    WHERE table_schema = 'public' AND grantee LIKE 'metering_%' AND grantee <> 'metering_owner'
    UNION
    SELECT grantee, table_name, '', privilege_type FROM information_schema.table_privileges
    WHERE table_schema = 'public' AND grantee LIKE 'metering_%' AND grantee <> 'metering_owner'
""")


def test_the_application_may_do_what_any_role_may(database: Database) -> None:
    """It is what simple installations use for everything, and what operators' commands connect as."""
    rights: dict[str, set[tuple[str, ...]]] = {}
    with create_engine(database.admin_url, poolclass=NullPool).connect() as connection:
        for grantee, *right in connection.execute(RIGHTS):
            rights.setdefault(grantee, set()).add(tuple(right))
    assert set(rights) == {APPLICATION, *ROLES}
    for role in ROLES:
        assert rights[role] < rights[APPLICATION], sorted(rights[role] - rights[APPLICATION])[:5]


@pytest.mark.parametrize(
    ("holder", "ours"), [("metering_jobs", True), ("metering_api", True), ("superuser", False)]
)
def test_a_meter_ends_a_stopped_session_of_any_role_of_ours_and_no_strangers(
    database: Database, engines: Mapping[str, Engine], holder: str, ours: bool
) -> None:
    prepare(database.engine, org_ids=[1], prices=[])
    lock = text("SELECT org_id FROM accounts WHERE org_id = 1 FOR NO KEY UPDATE")
    meter = engines["metering_meter"]
    admin = make_engine(database.admin_url, application_name="tests")
    blocked = text("SELECT cardinality(pg_blocking_pids(:pid))")
    aged = text(
        "SELECT xact_start < clock_timestamp() - interval '1.1 s' FROM pg_stat_activity WHERE pid = :pid"
    )
    with (
        ThreadPoolExecutor(1) as threads,
        engines.get(holder, admin).connect() as holding,
        meter.connect() as waiting,
        transaction(admin) as looking,
    ):
        holding.execute(lock)
        pid = driver_connection(holding).info.backend_pid
        got = threads.submit(waiting.execute, lock)
        driver = driver_connection(waiting)
        wait_until(lambda: looking.scalar(blocked, {"pid": driver.info.backend_pid}), limit_s=10)
        assert end_blockers(meter, driver, age_s=60) == []  # it hasn't been in the way for so long
        wait_until(lambda: looking.scalar(aged, {"pid": pid}), limit_s=10)
        # It is for the meter that waits, not for whoever would like somebody's session to end.
        with transaction(database.engine) as other:
            assert (
                other.scalars(text("SELECT end_blockers(:pid, 0)"), {"pid": driver.info.backend_pid}).all()
                == []
            )
        assert end_blockers(meter, driver, age_s=0) == [pid] * ours
        if ours:
            holding.invalidate()
        else:
            holding.rollback()
        assert got.result(10).scalar() == 1
    admin.dispose()

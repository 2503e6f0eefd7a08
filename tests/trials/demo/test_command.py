"""`metering demo`: real servers, real meters, a verdict that can be trusted."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import redis
import stripe
from sqlalchemy import make_url

from metering.rules.rejections import Reason
from metering.rules.times import format_time
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import NothingRuns, Servers, joined
from metering.sandbox.stripe.keeper import answering_stand_in
from metering.trials.demo.run import DRAIN_LIMIT_S
from tests.cli.conftest import Cli
from tests.cli.waiting import wait_until

LIMIT_S = 90
AUDIT_PASSED = re.compile(r"^Audit of [0-9,]+ transactions of [0-9,]+ orgs: passed\.$", re.MULTILINE)
AGREES = "Ledger and telephony's record agree, for every org and to the cent."
MONEY_AGREES = "customers:\nthe ledger says the same, for each to the cent."
GATES_AGREE = re.compile(r"^Gates closed ([0-9,]+) times and opened ([0-9,]+) times", re.MULTILINE)
SHORT = ("--seconds", "5", "--rate", "100", "--orgs", "5", "--meters", "1")
LONG = ("--seconds", "300", "--rate", "200", "--orgs", "5", "--meters", "1")


@pytest.fixture
def demo_cli(data_dir: Path) -> Cli:
    """The command on embedded servers of the test's own."""
    return Cli({"METERING_DATA_DIR": str(data_dir)})


@contextmanager
def started(demo_cli: Cli, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A demo under way; whatever is left of it at the end is killed."""
    process = demo_cli.start("demo", *options)
    try:
        yield process
    finally:
        process.kill()
        output, errors = process.communicate()  # empty, unless the test failed before it read them
        sys.stdout.write((output + errors).decode())


def end_of(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """The demo's exit status, and what it has printed."""
    output, errors = process.communicate(timeout=LIMIT_S)
    assert errors == b""
    return process.returncode, output.decode()


@contextmanager
def servers_of(data_dir: Path) -> Iterator[tuple[psycopg.Connection, redis.Redis, Servers]]:
    """The servers of a demo that is starting, as superuser."""
    with ExitStack() as stack:

        def join() -> bool:
            try:
                found.append(stack.enter_context(joined(data_dir)))
            except NothingRuns:
                return False
            return True

        found: list[Servers] = []
        wait_until(join, "the start of the servers")
        url = make_url(found[0].admin_database_url).set(drivername="postgresql", database="metering")
        connection = psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)
        yield (
            stack.enter_context(connection),
            stack.enter_context(connect_redis(found[0].redis_url)),
            found[0],
        )


def org_with_debits(connection: psycopg.Connection) -> int:
    """Some org that isn't reloaded by itself, once the demo has billed calls to it."""

    def look() -> bool:
        try:
            row = connection.execute(
                """
                SELECT min(org_id) FROM transactions JOIN accounts USING (org_id)
                WHERE kind = 'debit' AND NOT auto_reload_enabled
                """
            ).fetchone()
        except psycopg.errors.UndefinedTable:
            return False
        org_ids.extend([row[0]] if row and row[0] else [])
        return bool(org_ids)

    org_ids: list[int] = []
    wait_until(look, "the first debit")
    return org_ids[0]


def call(org_id: int, call_id: int) -> bytes:
    return json.dumps(
        {
            "call_id": call_id,
            "org_id": org_id,
            "tier": "bolt",
            "direction": "inbound",
            "duration_seconds": 75,
            "ended_at": format_time(system_clock()),
        }
    ).encode()


@pytest.mark.long
def test_a_demo_bills_everything_once_and_passes_its_audit(demo_cli: Cli) -> None:
    ended = demo_cli.process("demo", "--seconds", "8", "--rate", "200", "--seed", "5")
    output = ended.stdout.decode()
    assert ended.returncode == 0, output + ended.stderr.decode()
    assert ended.stderr == b""
    assert AUDIT_PASSED.search(output)
    assert AGREES in output
    assert MONEY_AGREES in output
    assert "NOT STRIPE" in output
    assert "\x1b" not in output
    top_ups = re.search(
        r"^Top-ups over the API: ([0-9]+) times, ([0-9]+) after 3DS, .*; 1 card_declined\.$",
        output,
        re.MULTILINE,
    )
    assert top_ups is not None
    assert int(top_ups[1]) > int(top_ups[2]) >= 1
    reloads = re.search(
        r"^Auto-reloads: ([0-9]+) times, .*; 1 declined, insufficient_funds; (.*)\.$", output, re.MULTILINE
    )
    assert reloads is not None
    assert int(reloads[1]) >= 4
    assert "1 org waiting, monthly_limit" in reloads[2]
    gates = GATES_AGREE.search(output)
    assert gates is not None
    assert int(gates[1]) >= 5  # orgs were exhausted
    assert int(gates[2]) > 36  # and some refilled
    refused = re.search(r"refused by a closed gate: ([0-9,]+) inbound, ([0-9,]+) outbound", output)
    assert refused is not None
    assert "0" not in refused.groups()
    suspended = re.search(
        r"^An operator suspended org [0-9]+ for a while, whatever its balance: ([0-9]+) calls? refused\.$",
        output,
        re.MULTILINE,
    )
    assert suspended is not None
    assert int(suspended[1]) >= 1
    assert re.search(r"^Push to gate, [0-9]+ times: median [0-9,]+ ms", output, re.MULTILINE)
    assert re.search(r"[0-9]+ calls? running when the gate closed cost [0-9.]+ after it", output)
    rows = dict(re.findall(r"│ ([^│]+?) +│ +([0-9,]*) │", output))
    assert int(rows["calls billed"].replace(",", "")) > 400
    last_line = re.findall(r"billed ([0-9,]+) .* lag 0  pending 0 .* duplicates and 0 s ([0-9,]+) ", output)[
        -1
    ]
    assert last_line == (rows["calls billed"], rows["dropped: duplicates + calls of 0 s"])
    for reason in set(Reason) - {Reason.UNPROCESSABLE}:
        assert int(rows[f"rejected: {reason}"]) > 0


@pytest.mark.long
def test_what_was_done_behind_its_back_is_named(demo_cli: Cli, data_dir: Path) -> None:
    """A call that telephony knows nothing of, a debit written by hand, and a charge that is none of the product's."""
    with started(demo_cli, *SHORT) as demo:
        with servers_of(data_dir) as (connection, client, _):
            org_id = org_with_debits(connection)
            (charged, customer, method), (damaged, _, _) = connection.execute(
                """
                SELECT org_id, stripe_customer_id, default_payment_method_id FROM accounts
                WHERE org_id <> %s AND (NOT auto_reload_enabled OR auto_reload_monthly_limit_cents > 0)
                ORDER BY org_id LIMIT 2
                """,
                [org_id],
            ).fetchall()
            client.xadd("calls:completed", {"event": call(org_id, 1)})
            connection.execute(
                """
                INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description,
                    call_id, duration_us, ended_at, tier, direction, billable_seconds, rate_microusd_per_minute,
                    increment_first_s, increment_next_s, minimum_s, connect_fee_microusd)
                VALUES (%s, 'debit', -8, 0, date_trunc('milliseconds', now()), 'by hand', 1, 60000000, now(), 'bolt',
                    'inbound', 60, 80000, 60, 60, 0, 0)
                """,
                [damaged],
            )
            charge_by_hand(data_dir, customer, method)
        status, output = end_of(demo)
    assert status == 1
    assert AGREES not in output
    assert MONEY_AGREES not in output
    assert re.search(r"^Audit of .*: FAILED\.$", output, re.MULTILINE)
    assert f"  Audit, balance_is_sum, org {damaged}: " in output
    billed = re.findall(
        r"^  Org ([0-9]+) was billed ([0-9]+) calls.* says ([0-9]+) calls", output, re.MULTILINE
    )
    assert {int(org): int(calls) - int(recorded) for org, calls, recorded in billed} == {
        org_id: 1,
        damaged: 1,
    }
    [(ledger, stripe)] = re.findall(
        rf"^  Org {charged}: the ledger has ([0-9]+) cents from its cards, Stripe holds ([0-9]+)\.$",
        output,
        re.MULTILINE,
    )
    assert int(stripe) - int(ledger) == 777


def charge_by_hand(data_dir: Path, customer: str, method: str) -> None:
    """A charge of 7.77 at the stand-in, without the product."""
    stand_in = answering_stand_in(data_dir)
    assert stand_in is not None
    stripe_client = stripe.StripeClient(stand_in.api_key, base_addresses={"api": stand_in.url})
    made = stripe_client.v1.payment_intents.create(
        {
            "amount": 777,
            "currency": "usd",
            "customer": customer,
            "payment_method": method,
            "allowed_payment_method_types": ["card"],
            "confirm": True,
            "off_session": True,
        }
    )
    assert made.status == "succeeded"


@pytest.mark.long
def test_ctrl_c_bills_what_was_pushed_and_checks_it(demo_cli: Cli, data_dir: Path) -> None:
    with started(demo_cli, *LONG) as demo:
        with servers_of(data_dir) as (connection, _, _):
            org_with_debits(connection)
        demo.send_signal(signal.SIGINT)
        status, output = end_of(demo)
    assert status == 130
    assert AUDIT_PASSED.search(output)
    assert AGREES in output
    assert GATES_AGREE.search(output)
    assert re.search(r"^[0-9,]+ calls? ran still at the end", output, re.MULTILINE)


@pytest.mark.long
def test_a_gate_forced_open_by_hand_is_mended_and_named(demo_cli: Cli, data_dir: Path) -> None:
    """It lets calls in that nobody wants: mended or not, that must not pass for a run in which all went well."""
    with started(demo_cli, "--seconds", "15", "--rate", "200", "--orgs", "5", "--meters", "1") as demo:
        with servers_of(data_dir) as (connection, client, _):
            org_id = org_with_debits(connection)
            arguments = ("--cents", "-100000000", "--reason", "drained by hand", "--key", "by hand")
            demo_cli.run("adjust", str(org_id), *arguments)
            key = f"gate:{org_id}"
            wait_until(lambda: client.hget(key, "state") == b"exhausted", "the gate's exhaustion")
            client.hset(key, "state", "open")
        status, output = end_of(demo)
    assert status == 1
    assert AUDIT_PASSED.search(output)
    assert AGREES in output
    assert not GATES_AGREE.search(output)
    assert f"  Org {org_id}'s signals don't follow: balance.exhausted at version " in output
    assert f"Org {org_id}'s gate says" not in output  # in the end it was right again


@pytest.mark.long
def test_a_second_ctrl_c_leaves_the_rest_in_the_stream_and_says_how_much(
    demo_cli: Cli, data_dir: Path
) -> None:
    with started(demo_cli, *LONG) as demo, servers_of(data_dir) as (connection, client, _):
        org_with_debits(connection)
        with connection.transaction():
            connection.execute("LOCK TABLE accounts IN EXCLUSIVE MODE")  # nobody can bill any more
            wait_until(lambda: client.xlen("calls:completed") > 100, "a backlog")
            demo.send_signal(signal.SIGINT)
            assert demo.stdout is not None
            while b"Ctrl-C again" not in (line := demo.stdout.readline()):
                assert line, "it ended without the offer to leave the rest"
            demo.send_signal(signal.SIGINT)
            status, output = end_of(demo)
        last_look_s = int(re.findall(r"^ +([0-9]+) s  pushed", output, re.MULTILINE)[-1])
        assert last_look_s < DRAIN_LIMIT_S  # or it was not the second Ctrl-C that ended it
        [left] = re.findall(
            r"^Nothing was compared: in the stream ([0-9,]+) events wait", output, re.MULTILINE
        )
        assert int(left.replace(",", "")) == client.xlen("calls:completed") > 100
    assert status == 130
    assert AUDIT_PASSED.search(output)
    assert AGREES not in output


@pytest.mark.long
def test_what_a_killed_demo_left_does_not_disturb_the_next(demo_cli: Cli, data_dir: Path) -> None:
    with ExitStack() as stack:
        demo = stack.enter_context(started(demo_cli, *LONG))
        connection, client, _ = stack.enter_context(servers_of(data_dir))
        org_id = org_with_debits(connection)
        demo.kill()
        demo.wait()
        left = [*(call(org_id, call_id) for call_id in range(1, 2_001)), *(b"not JSON",) * 100]
        # With its meters gone, or not quite: whoever is there takes them.
        for raw in left:
            client.xadd("calls:completed", {"event": raw})
        status, output = end_of(stack.enter_context(started(demo_cli, *SHORT)))
    assert status == 0, output
    assert AUDIT_PASSED.search(output)
    assert AGREES in output


@pytest.mark.parametrize("url", ["METERING_DATABASE_URL", "METERING_REDIS_URL"])
def test_it_refuses_servers_that_are_not_embedded(data_dir: Path, url: str) -> None:
    value = {"METERING_DATABASE_URL": "postgresql://nowhere/x", "METERING_REDIS_URL": "redis://nowhere/0"}[
        url
    ]
    sentence = Cli({"METERING_DATA_DIR": str(data_dir), url: value}).fail("demo")
    assert sentence.endswith("unset METERING_DATABASE_URL and METERING_REDIS_URL.")
    assert not data_dir.exists()

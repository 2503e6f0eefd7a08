"""The roles under the users of `deploy/`, for a minute after some were killed: all goes on, and no log says otherwise."""

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from metering.runtime.clock import system_clock
from metering.runtime.names import JOBS
from tests.deploy.stack import LIMIT_S, PASSWORDS, Running, Stack
from tests.waiting import wait_until

WATCHED_S = 60.0
RELOAD_EVERY_S = 15.0
"""With the one before the roles are killed five in ten minutes at most: what is beyond that would wait (`pace`)."""
RELOAD_LIMIT_S = 1.5
"""A reload takes half a second: dramatiq asks twice a second. That the reconciler finds it instead takes two seconds more."""
CALL = {"org_id": 1, "tier": "bolt", "direction": "outbound", "duration_seconds": 6_000}
CALL_CENTS = 800


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack") as started:
        done = started.run("migrate")
        assert done.returncode == 0, done.stderr
        yield started


class Operator:
    """An operator and a customer with a card, whose balance each call drives below the minimum."""

    def __init__(self, stack: Stack, api: Running) -> None:
        self._stack = stack
        self._calls = 0
        self.command("tier", "set", "bolt", "0.08")
        self.command("org", "create", "Acme", "--id", "1")
        self.command("adjust", "1", "--cents", "1000", "--reason", "First credit", "--key", "first")
        key = json.loads(self.command("key", "create", "1", "--json"))["api_key"]
        with httpx.Client(
            base_url=f"http://127.0.0.1:{api.http_port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=LIMIT_S,
        ) as customer:
            setup = customer.post("/v1/billing/setup-intent").raise_for_status().json()["setup_intent_id"]
            card = stack.stripe.confirm_setup(setup)
            chosen = {"payment_method_id": card}
            customer.post("/v1/billing/default-payment-method", json=chosen).raise_for_status()
            settings = {
                "auto_reload_enabled": True,
                "auto_reload_minimum_cents": 500,
                "auto_reload_amount_cents": CALL_CENTS,
                "auto_reload_monthly_limit_cents": 10_000_000,
            }
            customer.patch("/v1/billing", json=settings).raise_for_status()

    def command(self, *words: str, stdin: bytes = b"") -> bytes:
        done = self._stack.run("operator", words, input=stdin)
        assert done.returncode == 0, done.stderr
        return bytes(done.stdout)

    def reload(self) -> float:
        """Have a call billed that makes a reload due, and give how long the reload took until it was credited, in seconds."""
        self._calls += 1
        call = CALL | {"call_id": self._calls, "ended_at": system_clock().isoformat()}
        with self._stack.redis() as client:
            client.xadd("calls:completed", {"event": json.dumps(call)})
        wait_until(lambda: len(self._finished()) == self._calls, limit_s=LIMIT_S)
        return self._finished()[-1]

    def _finished(self) -> list[float]:
        with psycopg.connect(
            host="127.0.0.1",
            port=self._stack.postgres_port,
            dbname="metering",
            user="metering_app",
            password=PASSWORDS["POSTGRES_APP_PASSWORD"],
        ) as connection:
            rows = connection.execute(
                "SELECT extract(epoch FROM finished_at - created_at)::float8 FROM payment_attempts"
                " WHERE status = 'succeeded' AND kind = 'auto_reload' ORDER BY created_at"
            ).fetchall()
        return [row[0] for row in rows]


def wait_until_healthy(stack: Stack, service: str, running: Running) -> None:
    def healthy() -> bool:
        assert running.process.poll() is None, running.log()
        done = stack.check_health(service, metrics_port=running.metrics_port, http_port=running.http_port)
        return done.returncode == 0

    wait_until(healthy, limit_s=LIMIT_S, every_s=0.2)


def warnings_in(log: str) -> list[str]:
    """What a role said beside records of what is as it should be."""
    lines = [line for line in log.splitlines() if line]
    return [
        line
        for line in lines
        if not line.startswith("{") or json.loads(line)["level"] not in {"info", "debug"}
    ]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_minute_after_roles_were_killed_all_is_as_before(stack: Stack) -> None:
    with ExitStack() as running, stack.redis() as client:

        def start(service: str) -> Running:
            started = running.enter_context(stack.started(service))
            wait_until_healthy(stack, service, started)
            return started

        def listed() -> set[bytes]:
            return set(client.zrange(JOBS.heartbeats, 0, -1))

        api, meter, jobs = start("api"), start("meter"), start("jobs")
        operator = Operator(stack, api)
        operator.reload()
        dead = listed()
        assert len(dead) >= 2  # the jobs, and the meter that enqueued for them
        for role in (meter, jobs):
            role.process.kill()
            role.process.wait()
        meter, jobs = start("meter"), start("jobs")
        ends_s = time.monotonic() + WATCHED_S
        took_s = []
        while (left_s := ends_s - time.monotonic()) > 0:
            took_s.append(operator.reload())
            time.sleep(min(left_s, RELOAD_EVERY_S))
        assert not dead & listed()
        denied = client.acl_log()
        assert denied == []
        for role in (api, meter, jobs):
            assert warnings_in(role.log()) == []
            assert role.process.poll() is None
        assert statistics.median(took_s) <= RELOAD_LIMIT_S, took_s
        operator.command("audit")

"""The jobs as a process: gates come right again without anyone asking, and a dead worker's messages go to another."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Database
from tests.signals.listening import EXHAUSTED, RESTORED, adjust_and_tell, gate, said_of
from tests.spine.billing import assert_sound, balances, event, prepare, price, push
from tests.stripe_away import NO_STRIPE
from tests.waiting import wait_until


@contextmanager
def role(
    database: Database,
    redis_url: str,
    log: Path,
    *arguments: str,
    crash_point: str = "",
    settings: Mapping[str, str] = NO_STRIPE,
) -> Iterator["subprocess.Popen[bytes]"]:
    """`metering <arguments>` as a process of its own, its log in `log`; killed at the end if it still runs."""
    environment = os.environ | {
        **settings,
        "METERING_DATABASE_URL": database.url,
        "METERING_REDIS_URL": redis_url,
        "METERING_CRASH_POINT": crash_point,
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "metering", *arguments], env=environment, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def metrics_url(log: Path) -> str:
    """Where the role whose log this is serves its metrics, once it does."""
    found: list[str] = []

    def look() -> bool:
        found[:] = [
            word for word in log.read_text().replace('"', " ").split() if word.startswith("http://127.0.0.1:")
        ]
        return bool(found)

    wait_until(look, limit_s=30)
    return found[-1]


def metrics(url: str) -> dict[str, float]:
    """Each sample by its name and labels."""
    with urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
        families = text_string_to_metric_families(answer.read().decode())
        return {
            sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }


@pytest.fixture
def org(database: Database, redis_client: redis.Redis) -> int:
    """An org with 160 cents, ten calls of two minutes, whose gate is open."""
    prepare(database.engine, org_ids=[42], prices=[price("bolt", "0.08")])
    adjust_and_tell(database.engine, redis_client, 42, 160, "start")
    return 42


def test_jobs_bring_gates_back_after_flushall_and_say_how_things_stand(
    database: Database, redis_client: redis.Redis, redis_url: str, org: int, tmp_path: Path
) -> None:
    with role(database, redis_url, tmp_path / "log", "jobs") as process:
        url = metrics_url(tmp_path / "log")
        redis_client.flushall()
        wait_until(lambda: gate(redis_client, org).get("state") == "open", limit_s=20)
        push(redis_client, [event(org_id=org, call_id=n) for n in range(3)])
        assert metrics(url)["metering_stream_lag_events"] == 3
        assert metrics(url)["metering_stream_pending_events"] == 0
        adjust_and_tell(database.engine, redis_client, org, -160, "empty")
        wait_until(lambda: metrics(url)["metering_gates_exhausted"] == 1, limit_s=20)
        process.terminate()
        assert process.wait(timeout=40) == 0


@pytest.mark.long
def test_a_meter_killed_between_commit_and_gate_is_mended_by_the_reconciler_and_said_once(
    database: Database, redis_client: redis.Redis, redis_url: str, org: int, tmp_path: Path
) -> None:
    push(redis_client, [event(org_id=org, call_id=n) for n in range(1, 12)])
    with role(database, redis_url, tmp_path / "log", "meter", crash_point="meter.after_commit") as meter:
        assert meter.wait(timeout=30) == -signal.SIGKILL
    assert balances(database.engine) == {org: -16}
    assert gate(redis_client, org)["state"] == "open"
    with role(database, redis_url, tmp_path / "log", "jobs"):
        wait_until(lambda: gate(redis_client, org)["state"] == "exhausted", limit_s=30)
    with role(database, redis_url, tmp_path / "log", "meter"):
        wait_until(lambda: redis_client.xlen("calls:completed") == 0, limit_s=40)
    assert said_of(redis_client, org) == [RESTORED, EXHAUSTED]
    assert balances(database.engine) == {org: -16}
    assert_sound(database.engine)


def test_a_meter_tells_what_it_did(
    database: Database, redis_client: redis.Redis, redis_url: str, org: int, tmp_path: Path
) -> None:
    calls = [event(org_id=org, call_id=n) for n in range(1, 5)]
    push(
        redis_client,
        [*calls, calls[0], event(org_id=org, call_id=9, duration_seconds=0), event(org_id=777), b"{"],
    )
    with role(database, redis_url, tmp_path / "log", "meter") as meter:
        url = metrics_url(tmp_path / "log")
        wait_until(lambda: redis_client.xlen("calls:completed") == 0, limit_s=30)
        wait_until(lambda: metrics(url).get("metering_billed_seconds_total[bolt]") == 480, limit_s=30)
        told = metrics(url)
        meter.terminate()
        assert meter.wait(timeout=30) == 0
    assert {
        name: told[f"metering_events_total[{name}]"]
        for name in ("debited", "unbilled", "duplicate", "rejected")
    } == {
        "debited": 4,
        "unbilled": 1,
        "duplicate": 1,
        "rejected": 2,
    }
    assert told["metering_debited_cents_total[outbound][bolt]"] == 64
    assert told["metering_batch_events_sum"] == 8
    for histogram in ("batch_seconds", "event_to_commit_seconds", "commit_to_signal_seconds"):
        assert told[f"metering_{histogram}_count"] >= 1
    assert not any(f"[{org}]" in name for name in told)


def test_metrics_that_can_not_be_served_stop_the_role_with_a_sentence(
    database: Database, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_METRICS_HOST", "192.0.2.1")
    with role(database, redis_url, tmp_path / "log", "jobs") as process:
        assert process.wait(timeout=30) == 1
    said = (tmp_path / "log").read_text()
    assert "METERING_METRICS_PORT" in said
    assert "Traceback" not in said

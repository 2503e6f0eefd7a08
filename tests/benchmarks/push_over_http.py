# ruff: noqa: T201 - a table on the terminal is the point
"""How long 1,000 completed calls in one request take, beside a meter under load: `python -m tests.benchmarks.push_over_http`.

Everything runs on this machine: the API and a meter as processes of their own, on embedded servers, and who pushes.
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import httpx

from metering.api.completed_calls import MAX_EVENTS
from metering.runtime.clock import system_clock
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.trials.bench.fixture import TIER, Fixture, make_orgs, making_fixture
from metering.trials.bench.http_reads import TELEPHONY_SETTING, api_address
from metering.trials.bench.open_loop import observe
from metering.trials.bench.percentiles import percentiles
from metering.trials.bench.roles import api_commands, meter_command, running_roles

TOKEN: Final = "a-token-of-this-run"  # noqa: S105 - the servers end with it
ORGS: Final = 1_000
PUSHING_ORG: Final = 900_000_001
HALF_LOAD: Final = 12_000.0
EVERY_S: Final = 0.2
ACCEPTED: Final = 202


def body(number: int) -> bytes:
    """One request's events, all new."""
    ended_at = system_clock().isoformat()
    events = [
        {
            "call_id": number * MAX_EVENTS + index + 1,
            "org_id": PUSHING_ORG,
            "tier": TIER,
            "direction": "outbound",
            "duration_seconds": 75.204,
            "ended_at": ended_at,
            "phone_number_value": "+15551234567",
        }
        for index in range(MAX_EVENTS)
    ]
    return json.dumps({"events": events}).encode()


def push_until(stop: threading.Event, url: str, took_s: list[float]) -> None:
    """Send a request every so often; note how long each took to be answered."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        number = 0
        while not stop.wait(EVERY_S):
            content = body(number)
            began_s = time.perf_counter()
            answer = client.post("/v1/calls/completed", content=content)
            took_s.append(time.perf_counter() - began_s)
            number += 1
            if answer.status_code != ACCEPTED or answer.json()["accepted"] != MAX_EVENTS:
                raise RuntimeError(f"answered with {answer.status_code}: {answer.text[:300]}")


def measure(fixture: Fixture, per_second: float, seconds: float) -> tuple[list[float], float]:
    """Seconds that each request took, and the median until the meter's own load was committed."""
    os.environ[TELEPHONY_SETTING] = TOKEN  # the environment is this run's own (`making_fixture`)
    make_orgs(fixture.owner, [*range(1, ORGS + 1), PUSHING_ORG])
    took_s: list[float] = []
    stop = threading.Event()
    with (
        running_roles(
            fixture.servers.data_dir, [meter_command(0), *api_commands()], log_level="debug"
        ) as roles,
        SignalListener(fixture.client) as listener,
    ):
        host, port = api_address(roles)
        observe(fixture, [roles[0]], listener, per_second=2_000, seconds=1.5, orgs=ORGS)
        pusher = threading.Thread(target=push_until, args=(stop, f"http://{host}:{port}", took_s))
        pusher.start()
        threading.Timer(seconds, stop.set).start()
        seen = observe(fixture, [roles[0]], listener, per_second=per_second, seconds=seconds, orgs=ORGS)
        pusher.join()
    return took_s[1:], seen.commit.p50_ms


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="1,000 events in one request, beside a meter under load.")
    parser.add_argument("--per-second", type=float, default=HALF_LOAD, help="the meter's own load, in events")
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    data_dir = Path(tempfile.mkdtemp(prefix="metering-push-"))
    try:
        with making_fixture(data_dir) as fixture:
            took_s, commit_p50_ms = measure(fixture, asked.per_second, asked.seconds)
        took = percentiles(took_s)
        print(
            "| the meter's load, events/s | requests of 1,000 | p50 ms | p99 ms | the load's commit, p50 ms |"
        )
        print("| ---: | ---: | ---: | ---: | ---: |")
        print(
            f"| {asked.per_second:,.0f} | {len(took_s)} | {took.p50_ms:.1f} | {took.p99_ms:.1f} | {commit_p50_ms:.1f} |"
        )
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()

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
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from metering.client import MeteringClient
from tests.external_servers.faults import DIRECT, POOLED, Fault
from tests.external_servers.installation import MENDED, PAYS, START_CENTS, Installation, answered, installed
from tests.waiting import wait_until

TOP_UP_CENTS: Final = 1_000
CALL_CENTS: Final = 16
WATCHED_S: Final = 90.0
LOOK_EVERY_S: Final = 0.05
PUSH_EVERY_S: Final = 0.05
DRAIN_LIMIT_S: Final = 120.0


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
            time.sleep(LOOK_EVERY_S)  # between two looks: what is measured is when it comes true
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
        time.sleep(0.5)  # between two looks; what is still missing at the deadline is counted as lost
    billed = found.billed()
    lost = len(expected - set(billed))
    credited = found.balance_cents() + CALL_CENTS * len(billed) - START_CENTS
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
            installed(Path(directory) / "i", bouncer=bouncer, say=say) as found,
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

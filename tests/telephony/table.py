# ruff: noqa: T201 - a table on the terminal is the point
"""What calls through a SIP proxy cost, and how long the gate and a hold make them wait: `python -m tests.telephony.table`.

Kamailio runs with the blocks of its page: without a gate, with the gate, with a hold for each call. SIPp calls, a meter bills,
and the audit runs. Set-up is from INVITE to 200 as SIPp sees it, in steps of 4 ms; what of it is added, by Kamailio's clock.
Another Kamailio than Debian's: METERING_TEST_KAMAILIO="chroot /srv/sid kamailio".
"""

import argparse
import logging
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Engine

from metering.trials.bench.fixture import making_fixture
from tests.telephony.kamailio import Kamailio, parsed_events, program
from tests.telephony.scene import PASSWORDS, must_cost_cents, scene
from tests.telephony.sipp import ANSWERS, PAUSE, acknowledge, answered, hang_up, invite, scenario, start_phone
from tests.waiting import wait_until

GATED, HELD, UNGATED = 11, 12, 13
NAMES: Final = {UNGATED: "without a gate", GATED: "with the gate", HELD: "with a hold"}
HEADERS: Final = {UNGATED: "X-Ungated: yes\n", GATED: f"X-User: user{GATED}\n", HELD: f"X-User: user{HELD}\n"}
CENTS: Final = 10_000_000
LIMIT_S: Final = 60.0


@dataclass(frozen=True)
class Measured:
    """One kind of call."""

    name: str
    calls: int
    events: int
    debits: int
    wrong: int
    """Debits that aren't what the event must cost."""
    times_ms: list[float]
    """From INVITE to 200, call by call."""
    added_ms: list[float]
    """What of that the page's blocks took; empty without them."""

    def row(self, version: str) -> str:
        times = (shown(self.times_ms, part) for part in (0.5, 0.95))
        added = (shown(self.added_ms, part) for part in (0.5, 0.95))
        billed = (
            "not billed"
            if not self.events
            else "yes"
            if self.debits == self.calls and not self.wrong
            else "NO"
        )
        cells = ("Kamailio", version, self.name, str(self.calls), str(self.events), billed, *times, *added)
        return f"| {' | '.join(cells)} |"


def shown(times_ms: list[float], part: float) -> str:
    """A percentile, in milliseconds."""
    return f"{sorted(times_ms)[int(len(times_ms) * part)]:.2f}" if times_ms else ""


def measure(directory: Path, engine: Engine, calls: int, per_second: int) -> list[Measured]:
    """Each kind of call, one after the other; those with a hold through a proxy of their own."""
    orgs = dict.fromkeys((GATED, HELD), "open")
    found = []
    with scene(directory / "scene", engine, orgs, dict.fromkeys(orgs, CENTS)) as made:
        for holds in (False, True):
            kamailio = Kamailio(
                directory / f"kamailio-{holds}",
                made.valkey.port,
                password=PASSWORDS["TELEPHONY_PASSWORD"],
                users={f"user{org_id}": org_id for org_id in orgs},
                numbers={},
                holds=holds,
            )
            kamailio.start()
            try:
                for org_id in (HELD,) if holds else (UNGATED, GATED):
                    call(directory / f"warm-{org_id}", kamailio, HEADERS[org_id], 20, per_second)
                    times_ms = call(
                        directory / f"phones-{org_id}", kamailio, HEADERS[org_id], calls, per_second
                    )
                    if org_id != UNGATED:
                        wait_until(lambda: len(made.events()) == calls + 20, limit_s=LIMIT_S)
                    events = max(len(made.events()) - 20, 0)
                    made.bill()
                    debits = made.debits(org_id)
                    said = parsed_events(kamailio)
                    wrong = sum(
                        -each.amount_cents != must_cost_cents(said[each.call_id]["duration_seconds"])
                        for each in debits
                    )
                    billed = max(len(debits) - 20, 0)
                    added_ms = kamailio.added_ms()[20:] if org_id != UNGATED else []
                    found.append(Measured(NAMES[org_id], calls, events, billed, wrong, times_ms, added_ms))
            finally:
                kamailio.stop()
    return found


def call(directory: Path, kamailio: Kamailio, headers: str, calls: int, per_second: int) -> list[float]:
    """So many calls; milliseconds from each INVITE to its 200."""
    called = start_phone(directory, "called", scenario("called", ANSWERS), "-m", str(calls))
    steps = (
        invite(f"{headers}X-Port: {called.port}\n", measured=True),
        answered(measured=True),
        acknowledge(),
        PAUSE,
        hang_up(),
    )
    options = ("-m", str(calls), "-r", str(per_second), "-d", "500", "-s", "15551234567")
    measured = ("-trace_rtt", "-rtt_freq", "1", "-timer_resol", "1", kamailio.address)
    caller = start_phone(directory, "caller", scenario("caller", *steps), *options, *measured)
    try:
        caller.wait()
        called.wait()
    finally:
        caller.stop()
        called.stop()
    return caller.response_times_ms()


def main() -> None:
    """Call, and print a table."""
    parser = argparse.ArgumentParser(
        description="Calls through Kamailio: billed to the cent, and how long they wait."
    )
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--per-second", type=int, default=50)
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    said = subprocess.run([*program(), "-v"], capture_output=True, text=True, check=True).stdout
    version = said.split("kamailio ", 1)[1].split()[0]
    with tempfile.TemporaryDirectory(prefix="metering-telephony-") as name:
        directory = Path(name)
        with making_fixture(directory / "servers") as fixture:
            rows = [
                each.row(version)
                for each in measure(directory, fixture.engine, asked.calls, asked.per_second)
            ]
    print(
        "| system | version | calls | made | events | billed to the cent | set-up p50 ms | p95 | added p50 ms | p95 |"
    )
    print("| --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

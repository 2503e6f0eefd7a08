# ruff: noqa: T201 - a table on the terminal is the point
"""What other orgs notice of a greedy one: `python -m tests.benchmarks.greedy_org [CONNECTIONS ...]`.

One org with 3,000,000 transactions (`--transactions`) lists them at random deep offsets, over as many connections at once as is
said (0, 40 and 120 unless told), each asking again as soon as it is answered. Meanwhile other orgs ask at a steady rate, each
request over a connection of its own, and each "first" one with a key that was never used before. Embedded servers of its own,
one API process, everything on this machine. Latency counts from a request's scheduled time. Exits with 1 if a p99 is over
`--limit-ms` or another org's request was not answered with 200.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from secrets import token_urlsafe

from db.accounts.api_keys import create_key
from db.postgres.engine import transaction
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from metering.trials.bench.fixture import TIER, Fixture, give_a_cent, make_orgs, making_fixture
from metering.trials.bench.http_reads import TELEPHONY_SETTING, api_address
from metering.trials.bench.old_ledger import fill_ledger
from metering.trials.bench.percentiles import percentiles
from metering.trials.bench.roles import api_commands, running_roles

GREEDY: int = 1
FIRST_PEER: int = 1_000
TRANSACTIONS = 3_000_000
CONNECTIONS = (0, 40, 120)
SECONDS = 20.0
WARM_UP_S = 3.0
PER_SECOND = 10.0
"""Of each kind of request."""
TIMEOUT_S = 60.0
LIMIT_MS = 100.0
OK = 200
ACCOUNT = "/v1/billing"
LIST = "/v1/billing/transactions?limit=50"

Address = tuple[str, int]


@dataclass
class Answered:
    """What came back to one kind of request."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Ask:
    """A request of another org's."""

    method: str
    path: str
    credentials: str
    body: str = ""

    def words(self) -> bytes:
        return (
            f"{self.method} {self.path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.credentials}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n{self.body}"
        ).encode()


async def answer_of(reader: asyncio.StreamReader) -> str:
    """Read one answer to its end; give its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return head[9:12].decode()


async def ask_once(address: Address, ask: Ask, due_s: float, answered: Answered) -> None:
    """Send it, over a connection of its own, and note how it went."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(ask.words())
            status = await answer_of(reader)
            writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        status = type(error).__name__
    answered.latencies_s.append(time.monotonic() - due_s)
    answered.statuses[status] += 1


async def ask_steadily(address: Address, asks: dict[str, list[Ask]], answered: dict[str, Answered]) -> None:
    """Send every kind at its rate, in turns; wait for all answers."""
    kinds, started_s = list(asks), time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(sum(map(len, asks.values()))):
            kind = kinds[number % len(kinds)]
            due_s = started_s + number / (PER_SECOND * len(kinds))
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            group.create_task(
                ask_once(
                    address, asks[kind][number // len(kinds)], due_s, answered.setdefault(kind, Answered())
                )
            )


async def _greed(
    address: Address, api_key: str, connections: int, transactions: int, until_s: float
) -> Counter[str]:
    statuses: Counter[str] = Counter()

    async def one() -> None:
        while time.monotonic() < until_s:
            try:
                reader, writer = await asyncio.open_connection(*address)
                while time.monotonic() < until_s:
                    offset = random.randrange(transactions // 2, transactions)
                    writer.write(Ask("GET", f"{LIST}&offset={offset}", api_key).words())
                    statuses[await answer_of(reader)] += 1
            except (OSError, EOFError) as error:
                statuses[type(error).__name__] += 1

    tasks = [asyncio.create_task(one()) for _ in range(connections)]
    await asyncio.sleep(max(until_s - time.monotonic(), 0.0))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return statuses


def greed(
    said: Connection, address: Address, api_key: str, connections: int, transactions: int, until_s: float
) -> None:
    """The greedy org's program: asks over and over until then; says what it was answered."""
    said.send(asyncio.run(_greed(address, api_key, connections, transactions, until_s)))


def make_peers(fixture: Fixture, count: int) -> list[str]:
    """So many other orgs with a cent and an open gate; gives a key of each."""
    org_ids, now = range(FIRST_PEER, FIRST_PEER + count), system_clock()
    make_orgs(fixture.owner, org_ids)
    give_a_cent(fixture.owner, org_ids, now)
    Gates(fixture.client).follow([Balance(org_id, 1, 1) for org_id in org_ids], now)
    with transaction(fixture.engine) as connection:
        return [create_key(connection, org_id, now).api_key for org_id in org_ids]


def measure(
    address: Address,
    greedy_key: str,
    known: Sequence[str],
    fresh: Sequence[str],
    token: str,
    connections: int,
    transactions: int,
    seconds: float,
) -> tuple[dict[str, Answered], Counter[str]]:
    """Other orgs' requests beside so many connections of the greedy one; and what that one was answered."""
    times = int(seconds * PER_SECOND)
    gate = f"/v1/gate/{FIRST_PEER}?direction=outbound&tier={TIER}"
    asks = {
        "GET /v1/billing": [Ask("GET", ACCOUNT, known[n % len(known)]) for n in range(times)],
        "PATCH /v1/billing": [
            Ask("PATCH", ACCOUNT, known[n % len(known)], json.dumps({"auto_reload_minimum_cents": n}))
            for n in range(times)
        ],
        "gate, by the token": [Ask("GET", gate, token)] * times,
        "gate, by a key": [Ask("GET", gate, known[0])] * times,
        "GET transactions": [Ask("GET", LIST, known[n % len(known)]) for n in range(times)],
        "first GET of transactions": [Ask("GET", LIST, fresh[n]) for n in range(times)],
    }
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    until_s = time.monotonic() + seconds + WARM_UP_S + 1.0
    program = multiprocessing.get_context("spawn").Process(
        target=greed, args=(theirs, address, greedy_key, connections, transactions, until_s)
    )
    program.start()
    time.sleep(WARM_UP_S)
    answered: dict[str, Answered] = {}
    asyncio.run(ask_steadily(address, asks, answered))
    told: Counter[str] = mine.recv()
    program.join()
    return answered, told


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="What other orgs notice of a greedy one.")
    parser.add_argument("connections", nargs="*", type=int, default=CONNECTIONS)
    parser.add_argument("--transactions", type=int, default=TRANSACTIONS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--limit-ms", type=float, default=LIMIT_MS)
    asked = parser.parse_args()
    data_dir = Path(tempfile.mkdtemp(prefix="metering-greedy-"))
    failed = False
    try:
        with making_fixture(data_dir) as fixture:
            make_orgs(fixture.owner, [GREEDY])
            fill_ledger(fixture.owner, asked.transactions, orgs=1, at=system_clock(), report=lambda _: None)
            with transaction(fixture.engine) as connection:
                greedy_key = create_key(connection, GREEDY, system_clock()).api_key
            known = make_peers(fixture, 20)
            token = os.environ[TELEPHONY_SETTING] = token_urlsafe()
            with running_roles(data_dir, api_commands()) as roles:
                address = api_address(roles)
                print(
                    "| greedy connections | another org's request | p50 ms | p99 ms | highest ms | answers |"
                )
                print("| ---: | --- | ---: | ---: | ---: | --- |")
                for connections in asked.connections:
                    times = int(asked.seconds * PER_SECOND)
                    with transaction(fixture.engine) as connection:
                        fresh = [
                            create_key(connection, FIRST_PEER + n % len(known), system_clock()).api_key
                            for n in range(times)
                        ]
                    answered, told = measure(
                        address,
                        greedy_key,
                        known,
                        fresh,
                        token,
                        connections,
                        asked.transactions,
                        asked.seconds,
                    )
                    for kind, each in answered.items():
                        took = percentiles(each.latencies_s)
                        failed |= took.p99_ms > asked.limit_ms or set(each.statuses) != {str(OK)}
                        print(
                            f"| {connections} | {kind} | {took.p50_ms:.1f} | {took.p99_ms:.1f} | {took.highest_ms:.0f}"
                            f" | {dict(each.statuses)} |"
                        )
                    per_second = sum(told.values()) / (asked.seconds + WARM_UP_S)
                    print(
                        f"| {connections} | the greedy org's own: {per_second:.0f} a second | | | | {dict(told)} |",
                        flush=True,
                    )
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

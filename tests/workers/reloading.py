"""What the tests of reloads through meters and jobs share: an installation whose attempts are enqueued through Redis, and its
jobs."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from prometheus_client import CollectorRegistry

from metering.payments.context import Payments
from tests.payments.world import World
from tests.waiting import wait_until
from workers.enqueue import AttemptQueue
from workers.jobs import run_jobs

LIMIT_S = 30.0


def nudging(world: World) -> Payments:
    """The world's payments, as a role has them: attempts are told of through Redis."""
    return replace(world.payments, enqueue=AttemptQueue(world.client).enqueue)


@contextmanager
def running_jobs(world: World, *, processes: int = 1) -> Iterator[None]:
    """So many jobs, each in a thread, while the block runs; what ended one of them is raised at its end."""
    stop = threading.Event()
    with ThreadPoolExecutor(processes) as threads:
        running = [
            threads.submit(run_jobs, nudging(world), world.client, stop=stop, registry=CollectorRegistry())
            for _ in range(processes)
        ]
        try:
            yield
        finally:
            stop.set()
        for each in running:
            each.result(timeout=LIMIT_S)


def ready_to_reload(
    world: World, org_ids: Sequence[int] = (1,), *, balance_cents: int = 1_000, amount_cents: int = 5_000
) -> None:
    """Give orgs a card, so much money, and reloads below a minimum of 10.00."""
    for org_id in org_ids:
        if org_id != 1:
            world.make_org(org_id)
        world.adjust(balance_cents, org_id=org_id)
        world.save_card(org_id=org_id)
        world.settings(org_id=org_id, enabled=True, minimum_cents=1_000, amount_cents=amount_cents)
    assert world.enqueued == []


def wait_for_balance(world: World, balance_cents: int, *, org_id: int = 1) -> None:
    wait_until(lambda: world.balance(org_id) == balance_cents, limit_s=LIMIT_S)

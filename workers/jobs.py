"""The jobs role: dramatiq's worker and everything that goes round, in one process."""

import threading
from collections.abc import Callable
from typing import Final

import redis
import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from metering.payments.context import Payments
from metering.signals.holds import Holds
from workers.audit_job import audit_tasks
from workers.auto_reload import declare_auto_reload
from workers.billed_holds import BilledHolds
from workers.broker import WORKER_THREADS, make_broker, make_worker
from workers.charges_standing import ChargesCollector
from workers.dead_workers import DeadWorkers
from workers.gate_reconciler import GateReconciler
from workers.hold_reconciler import HoldCountsCollector, HoldReconciler
from workers.metrics import BacklogCollector, ValkeyMemoryCollector
from workers.overspent import overspent_task
from workers.payment_reconciler import ATTEMPT_THREADS, payment_tasks
from workers.refused_holds import RefusedHolds
from workers.usage_job import usage_task

POOL_SIZE: Final = (WORKER_THREADS + ATTEMPT_THREADS) // 2 + 8
"""Connections to Postgres, to be set on the engine that jobs are given. Most of an attempt's time is Stripe's, and holds none."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def run_jobs(
    payments: Payments,
    client: redis.Redis,
    *,
    stop: threading.Event,
    registry: CollectorRegistry = REGISTRY,
) -> None:
    """Work until `stop` is set, with the jobs in hand finished.

    The reconcilers run in threads of their own: nothing in Redis, no schedule and no message, is the only reason for them to run.
    They outlive every error they can; if one's thread ends all the same, so does this role: a supervisor starts it again, and
    nobody believes that gates or charges are being watched.

    `registry` serves the metrics that are read when they are asked for; each of it can be there once.
    """
    broker = make_broker(client)
    declare_auto_reload(broker, payments)
    worker = make_worker(broker)
    failures: list[BaseException] = []

    def watched(run: Callable[[threading.Event], None]) -> None:
        try:
            run(stop)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            stop.set()

    charges = ChargesCollector(payments.engine)
    reconciler = GateReconciler(payments.engine, payments.gates, clock=payments.clock)
    tasks = [
        *payment_tasks(payments),
        *audit_tasks(payments.engine),
        usage_task(payments.engine),
        DeadWorkers(broker).task(),
        RefusedHolds(payments, Holds(client)).task(),
        HoldReconciler(payments.engine, client, clock=payments.clock).task(),
        BilledHolds(payments.engine, client, clock=payments.clock).task(),
        overspent_task(payments.engine, Holds(client)),
        charges.task(),
    ]
    runs = {"gates": reconciler.run} | {each.name: each.run for each in tasks}
    reconciling = [threading.Thread(target=watched, args=(run,), name=name) for name, run in runs.items()]
    collectors = (
        charges,
        BacklogCollector(client),
        ValkeyMemoryCollector(client),
        HoldCountsCollector(client),
    )
    for collector in collectors:
        registry.register(collector)
    for thread in reconciling:
        thread.start()
    worker.start()
    log.info("jobs are running")
    try:
        stop.wait()
    finally:
        stop.set()
        worker.stop(timeout=30_000)
        for thread in reconciling:
            thread.join()
        for collector in collectors:
            registry.unregister(collector)
    if failures:
        raise failures[0]
    log.info("jobs have stopped")

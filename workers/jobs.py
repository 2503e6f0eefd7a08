"""The jobs role: dramatiq's worker and the sweep, in one process."""

import threading

import redis
import structlog
from sqlalchemy import Engine

from metering.runtime.clock import Clock
from metering.signals.gates import Gates
from workers.broker import make_broker, make_worker
from workers.sweep import Sweep

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def run_jobs(engine: Engine, client: redis.Redis, *, clock: Clock, stop: threading.Event) -> None:
    """Work until `stop` is set, with the jobs in hand finished.

    The sweep runs in a thread of its own: nothing in Redis, no schedule and no message, is the only reason for it to run. It
    outlives every error it can; if its thread ends all the same, so does this role: a supervisor starts it again, and nobody
    believes that gates are being watched.
    """
    worker = make_worker(make_broker(client))
    failures: list[BaseException] = []

    def sweep() -> None:
        try:
            Sweep(engine, Gates(client), clock=clock).run(stop)
        except BaseException as error:
            failures.append(error)
            stop.set()
            raise

    sweeping = threading.Thread(target=sweep, name="sweep")
    sweeping.start()
    worker.start()
    log.info("jobs are running")
    try:
        stop.wait()
    finally:
        worker.stop(timeout=30_000)
        sweeping.join()
    if failures:
        raise failures[0]
    log.info("jobs have stopped")

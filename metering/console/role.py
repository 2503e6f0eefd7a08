"""What every role needs to run: its servers, its logs, its metrics, and a way to be told to stop."""

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    import threading

    import redis
    from sqlalchemy import Engine

SWITCH_INTERVAL_S: Final = 0.0005
"""How long one thread computes while another one, whose answer has come, waits for its turn: Python's own 5 ms are longer than a
whole small batch takes (docs/explanation/performance.md)."""

VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", help="Log as with METERING_LOG_LEVEL=debug; for a meter, also a line for each call."
    ),
]
StopWithStdinOption = Annotated[
    bool, typer.Option("--stop-with-stdin", hidden=True, help="Stop when standard input ends.")
]


@dataclass(frozen=True, slots=True)
class RunningRole:
    """A role's servers, which are there and at this program's schema, and the event that tells it to stop."""

    engine: "Engine"
    client: "redis.Redis"
    stop: "threading.Event"


@contextmanager
def running_role(
    command: str,
    *,
    lock_timeout_ms: int,
    pool_size: int,
    verbose: bool,
    stop_with_stdin: bool,
    charges: bool = False,
) -> Iterator[RunningRole]:
    """Set up the role that `metering <command>` runs. Its `stop` may be set from the start: it was told to while it waited.

    With `charges` it is one that talks to Stripe: settings for that which are missing are told before anything starts.
    """
    import structlog

    from db.postgres.metrics import CONNECTIONS, use_of
    from metering.console.clock_watch import ClockWatch
    from metering.console.connections import engine_for, located
    from metering.console.server_watch import watching_servers
    from metering.console.stopping import stop_on_signals
    from metering.console.stripe_access import named_stripe
    from metering.runtime.build_info import tell_build
    from metering.runtime.clock import system_clock
    from metering.runtime.health import HEALTH
    from metering.runtime.logs import configure_logs
    from metering.runtime.metrics_server import serving_metrics
    from metering.runtime.redis_connection import connect_redis
    from metering.runtime.settings import read_settings
    from metering.runtime.summaries import summaries

    settings = read_settings()
    configure_logs("debug" if verbose else settings.log_level)
    HEALTH.log_refusals()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if charges:
        named_stripe(settings)
    with (
        stop_on_signals(or_end_of_stdin=stop_with_stdin) as stop,
        located() as found,
        engine_for(
            found.database_url, command=command, lock_timeout_ms=lock_timeout_ms, pool_size=pool_size
        ) as engine,
        connect_redis(found.redis_url) as client,
        CONNECTIONS.told(command, lambda: use_of(engine)),
        ExitStack() as stack,
    ):
        tell_build(command)
        _wait_for_schema(engine, stop)
        stack.enter_context(watching_servers(engine, client, stop))
        # Only now: a health check that reads them must not find a role well that can't work yet.
        with (
            ClockWatch(engine, system_clock) as watch,
            serving_metrics(
                settings.metrics_host, settings.metrics_port, command, complaint=watch.complaint
            ) as metrics_url,
        ):
            structlog.get_logger().info("metrics are served", role=command, url=metrics_url)
            gc.collect()
            gc.freeze()  # what is there by now stays: a collection that looked at all of it would halt everything for 80 ms
            with summaries(command):
                yield RunningRole(engine, client, stop)


def _wait_for_schema(engine: "Engine", stop: "threading.Event") -> None:
    """Wait until Postgres is there, or `stop` is set. Raises UnfitServerError, SchemaMismatchError."""
    import structlog

    from db.postgres.failures import Failure, diagnose
    from db.postgres.schema import check_schema
    from metering.console.errors import quoted
    from metering.runtime.backoff import backoff_s

    waits = backoff_s()
    while not stop.is_set():
        try:
            check_schema(engine)
        except Exception as error:
            if diagnose(error) is not Failure.OUTAGE:
                raise
            wait_s = next(waits)
            structlog.get_logger().warning(
                "waiting for Postgres", error=quoted(error), wait_s=round(wait_s, 2)
            )
            stop.wait(wait_s)
        else:
            return

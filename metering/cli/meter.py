"""`metering meter`."""

import os
import socket
from typing import Annotated

import typer

from metering.console.role import StopWithStdinOption, VerboseOption, running_role
from metering.console.values import text_value

MAX_NAME_CHARS = 200


def meter(
    name: Annotated[
        str | None,
        typer.Option(
            help="Its name as a consumer of the stream; no two that run may share one. "
            "Unset: its host's name and process id.",
            metavar="CONSUMER",
            show_default=False,
        ),
    ] = None,
    batch_limit: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=10_000, help="How many calls at most to bill in one transaction."
        ),
    ] = 3_000,
    verbose: VerboseOption = False,
    stop_with_stdin: StopWithStdinOption = False,
) -> None:
    """Run one meter: take completed calls from the stream and bill them, until told to stop.

    SIGTERM and Ctrl-C end it with its batch finished. Any number may run side by side.
    """
    from metering.runtime.clock import system_clock
    from metering.runtime.garbage import tune_garbage_collector
    from metering.signals.gates import Gates
    from workers.meter import LOCK_TIMEOUT_MS, POOL_SIZE, Meter
    from workers.reload_follower import ReloadFollower
    from workers.stream import CallStream

    consumer = text_value("name", name or f"{socket.gethostname()}-{os.getpid()}", max_chars=MAX_NAME_CHARS)
    with running_role(
        "meter",
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        pool_size=POOL_SIZE,
        verbose=verbose,
        stop_with_stdin=stop_with_stdin,
    ) as role:
        stream, gates = CallStream(role.client, consumer), Gates(role.client)
        reloads = ReloadFollower(role.engine, role.client)
        tune_garbage_collector()
        Meter(
            role.engine,
            stream,
            gates,
            reloads,
            clock=system_clock,
            stop=role.stop,
            batch_limit=batch_limit,
            tell_calls=verbose,
        ).run()

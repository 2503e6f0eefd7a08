# ruff: noqa: PLC0415 - imported when the command runs, so that --help is quick
"""`metering jobs`."""

from metering.cli.role import StopWithStdinOption, VerboseOption, running_role


def jobs(verbose: VerboseOption = False, stop_with_stdin: StopWithStdinOption = False) -> None:
    """Run the jobs: what is tried again until it succeeds, and the sweep that finds and mends wrong gates.

    SIGTERM and Ctrl-C end it with the job in hand finished. Any number may run side by side.
    """
    from prometheus_client import REGISTRY

    from metering.cli.connections import LOCK_TIMEOUT_MS
    from metering.runtime.clock import system_clock
    from workers.jobs import run_jobs
    from workers.metrics import BacklogCollector

    with running_role(
        "jobs", lock_timeout_ms=LOCK_TIMEOUT_MS, verbose=verbose, stop_with_stdin=stop_with_stdin
    ) as role:
        REGISTRY.register(BacklogCollector(role.client))
        run_jobs(role.engine, role.client, clock=system_clock, stop=role.stop)

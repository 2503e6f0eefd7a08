"""`metering jobs`."""

from metering.console.role import StopWithStdinOption, VerboseOption, running_role


def jobs(verbose: VerboseOption = False, stop_with_stdin: StopWithStdinOption = False) -> None:
    """Run the jobs: charges and what settles them, and the reconcilers that find what went wrong or got lost.

    SIGTERM and Ctrl-C end it with the job in hand finished. Any number may run side by side.
    """
    from metering.console.connections import LOCK_TIMEOUT_MS
    from metering.console.payments import open_payments
    from workers.jobs import POOL_SIZE, run_jobs

    with running_role(
        "jobs",
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        pool_size=POOL_SIZE,
        verbose=verbose,
        stop_with_stdin=stop_with_stdin,
        charges=True,
    ) as role:
        opened = open_payments(role)
        if opened is None:
            return
        run_jobs(opened.payments, role.client, stop=role.stop)

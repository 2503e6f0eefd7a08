"""`metering chaos`."""

import random
from typing import Annotated

import typer

from metering.console.output import JsonOption


def chaos(
    minutes: Annotated[
        float, typer.Option(min=0.5, max=24 * 60, help="How long faults strike; it takes some minutes more.")
    ] = 3.0,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The schedule of faults. Unset: another each time; it is told.", show_default=False
        ),
    ] = None,
    rate: Annotated[int, typer.Option(min=1, max=1_000, help="Calls that want to start per second.")] = 40,
    orgs: Annotated[int, typer.Option(min=6, max=500, help="How many orgs there are.")] = 18,
    as_json: JsonOption = False,
) -> None:
    """Kill, freeze, cut off and restore everything, under load, and prove that not a cent is lost or taken twice.

    Two meters, two jobs, the API, Postgres, Valkey and a stand-in for Stripe run as processes of their own in a
    new directory under METERING_DATA_DIR, while simulated telephony pushes calls and simulated customers top up. A seeded
    schedule of faults strikes. In the end everything is healed, and the ledger held against what was pushed, what
    customers were told and what Stripe took. Exit status 0 means that they agree to the cent; 1 names what is off,
    and the directory is kept.
    """
    from metering.trials.chaos.command import run
    from metering.trials.chaos.run import Plan

    chosen = random.randrange(10**6) if seed is None else seed  # noqa: S311 - to be repeatable, not secret
    status = run(Plan(chosen, minutes * 60, rate), orgs=orgs, as_json=as_json)
    if status:
        raise typer.Exit(status)

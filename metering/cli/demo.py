"""`metering demo`."""

import random
from typing import Annotated

import typer


def demo(
    seconds: Annotated[int, typer.Option(min=1, max=600, help="How long calls start.")] = 30,
    rate: Annotated[
        int, typer.Option(min=1, max=2_000, help="Calls that want to start per second, on average.")
    ] = 500,
    orgs: Annotated[int, typer.Option(min=1, max=1_000, help="How many orgs make calls.")] = 36,
    meters: Annotated[int, typer.Option(min=1, max=16, help="How many meters bill them.")] = 2,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Push the same calls as another demo. Unset: others each time.", show_default=False
        ),
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Start nothing: use the installation that the settings name, whose API is there and whose Stripe is a stand-in.",
        ),
    ] = None,
) -> None:
    """Watch simulated calls being billed, gates following and cards being charged, on embedded servers that it starts.

    Telephony asks each call's gate before it starts, and keeps its own record of what it pushes: the ledger has to
    agree with it to the cent, gates and signals with the ledger, and what a stand-in for Stripe holds too. Exit status
    0 means that they do and that the audit passed; 1 names what is off. Ctrl-C ends it early: what was pushed until
    then is billed and checked. With STRIPE_API_KEY=sk_test_... it uses Stripe itself, in test mode.
    """
    from metering.trials.demo.run import Plan, run_demo, run_demo_beside

    chosen = random.randrange(10**6) if seed is None else seed  # noqa: S311 - to be repeatable, not secret
    plan = Plan(duration_s=seconds, rate=rate, orgs=orgs, meters=meters, seed=chosen)
    status = run_demo(plan) if api is None else run_demo_beside(plan, api)
    if status:
        raise typer.Exit(status)

# ruff: noqa: PLC0415 - imported when the command runs, so that --help is quick
"""`metering up`."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from rich.panel import Panel

    from metering.cli.connections import Located

MAX_METERS = 64
FIRST_ORG_ID = 1001
"""The org of the first steps that are shown: `demo`, in the same data directory, takes ids from 1 on."""


def up(
    meters: Annotated[
        int, typer.Option(metavar="N", min=1, max=MAX_METERS, help="How many meters to run.")
    ] = 1,
) -> None:
    """Run everything on this machine, until Ctrl-C.

    Without METERING_DATABASE_URL and METERING_REDIS_URL it starts embedded servers under METERING_DATA_DIR,
    or joins them, and brings their schema up to date.
    """
    from metering.cli.connections import located, prepare_database
    from metering.cli.output import console, warn
    from metering.cli.roles import JOBS, Supervisor, meter_roles, metrics_ports
    from metering.cli.stopping import stop_on_signals
    from metering.runtime.clock import system_clock
    from metering.runtime.redis_connection import connect_redis

    roles = [*meter_roles(meters), JOBS]
    ports = metrics_ports(len(roles))  # before anything starts: there may not be so many
    with stop_on_signals() as stop, located(start=True) as found:
        prepare_database(found)
        with connect_redis(found.redis_url) as client:
            client.ping()
        if stop.is_set():
            return
        with Supervisor(roles, say=warn):
            shown = console()
            shown.print(_panel(found, meters, ports))
            for line in ("In another terminal:", *(f"  {step}" for step in _first_steps(system_clock()))):
                shown.print(line, markup=False, soft_wrap=True)  # whole lines, to be copied
            stop.wait()
            warn("Stopping; events in hand are finished first.")


def _panel(found: "Located", meters: int, ports: list[int]) -> "Panel":
    """What runs, and where; `ports` are those of the metrics, the meters' first."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from metering.cli.connections import address
    from metering.cli.output import counted, printable
    from metering.runtime.settings import read_settings

    metrics = "free ports; the log lines below name them"
    if ports[0]:
        of_meters = f"{', '.join(map(str, ports[:-1]))} ({counted(meters, 'meter')})"
        metrics = f"{read_settings().metrics_host}, ports {of_meters} and {ports[-1]} (jobs)"
    origin = {True: "embedded", False: "from the settings"}
    shown = Table.grid(padding=(0, 2))
    for name, value in (
        ("Postgres", f"{address(found.database_url)} ({origin[found.embedded_database]})"),
        ("Redis", f"{address(found.redis_url)} ({origin[found.embedded_redis]})"),
        ("Roles", f"{counted(meters, 'meter')}, jobs"),
        ("Metrics", metrics),
        ("Stop", "Ctrl-C"),
    ):
        shown.add_row(Text(name, style="bold"), Text(printable(value), overflow="fold"))
    return Panel(shown, title="Metering is up", title_align="left", expand=False)


def _first_steps(now: "datetime") -> list[str]:
    """Commands that bill a first call, ended at `now`."""
    from metering.rules.times import format_time

    event = (
        f'{{"call_id":1,"org_id":{FIRST_ORG_ID},"tier":"bolt","direction":"outbound",'
        f'"duration_seconds":75,"ended_at":"{format_time(now)}"}}'
    )
    return [
        f"metering org create Acme --id {FIRST_ORG_ID}",
        f'metering adjust {FIRST_ORG_ID} --cents 1000 --reason "First credit" --key first',
        "metering tier set bolt 0.08",
        f"echo '{event}' | metering push -",
        "metering status",
    ]

"""`metering up`."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.panel import Panel

    from metering.console.connections import Located
    from metering.console.stripe_access import StripeAccess

MAX_METERS = 64


def up(
    meters: Annotated[
        int, typer.Option(metavar="N", min=1, max=MAX_METERS, help="How many meters to run.")
    ] = 1,
) -> None:
    """Run everything on this machine, until Ctrl-C: the API, meters, the jobs.

    Without METERING_DATABASE_URL and METERING_REDIS_URL it starts embedded servers under METERING_DATA_DIR,
    or joins them, and brings their schema up to date. Beside the embedded database, and without STRIPE_API_KEY,
    it also starts a stand-in for Stripe, which charges nobody.
    """
    from metering.console.connections import located, prepare_database
    from metering.console.first_steps import first_steps
    from metering.console.http_port import free_http_port, local_url
    from metering.console.output import console, warn
    from metering.console.redis_port import check_redis_port, open_redis_port
    from metering.console.roles import API, JOBS, STRIPE_SANDBOX, Supervisor, meter_roles, metrics_ports
    from metering.console.stopping import stop_on_signals
    from metering.console.stripe_access import find_stripe, named_return_url, named_stripe
    from metering.runtime.clock import system_clock
    from metering.runtime.redis_checks import check_redis
    from metering.runtime.redis_connection import connect_redis
    from metering.runtime.settings import read_settings

    # All that can be wrong with the settings, before anything starts.
    settings = read_settings()
    stand_in = named_stripe(settings) is None
    named_return_url(settings)
    check_redis_port(settings)
    roles = [*meter_roles(meters), JOBS, API, *([STRIPE_SANDBOX] if stand_in else [])]
    ports = metrics_ports(roles)
    http_port = free_http_port(settings.http_host, settings.http_port)
    with stop_on_signals() as stop, located(start=True) as found:
        prepare_database(found)
        with connect_redis(found.redis_url) as client:
            check_redis(client)
            if settings.redis_port is not None:
                open_redis_port(client, settings.redis_port)
        if stop.is_set():
            return
        with Supervisor(roles, say=warn, settings={"METERING_HTTP_PORT": str(http_port)}):
            access = find_stripe(settings, found.data_dir, stop)
            if access is None:
                return
            shown = console()
            url = local_url(settings.http_host, http_port)
            shown.print(_panel(found, url, access, meters, ports))
            steps = first_steps(system_clock(), url, access)
            for line in ("In another terminal:", *(f"  {step}" for step in steps)):
                shown.print(line, markup=False, soft_wrap=True)  # whole lines, to be copied
            stop.wait()
            warn("Stopping; events in hand are finished first.")


def _panel(found: "Located", url: str, access: "StripeAccess", meters: int, ports: list[int]) -> "Panel":
    """What runs, and where; `ports` are those of the metrics, the meters' first, then the jobs', then the API's."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from metering.console.connections import address
    from metering.console.output import counted, printable
    from metering.runtime.settings import read_settings

    metrics = "free ports; the log lines below name them"
    if ports[0]:
        of_meters = f"{', '.join(map(str, ports[:meters]))} ({counted(meters, 'meter')})"
        metrics = f"{read_settings().metrics_host}, ports {of_meters}, {ports[meters]} (jobs) and {ports[meters + 1]} (api)"
    origin = {True: "embedded", False: "from the settings"}
    redis_port = read_settings().redis_port
    also = "" if redis_port is None else f", and 127.0.0.1:{redis_port} for whoever is on this machine"
    shown = Table.grid(padding=(0, 2))
    for name, value in (
        ("API", f"{url}, described at {url}/docs"),
        ("Stripe", _stripe(access)),
        ("Postgres", f"{address(found.database_url)} ({origin[found.embedded_database]})"),
        ("Redis", f"{address(found.redis_url)} ({origin[found.embedded_redis]}){also}"),
        ("Roles", f"api, {counted(meters, 'meter')}, jobs"),
        ("Metrics", metrics),
        ("Stop", "Ctrl-C"),
    ):
        shown.add_row(Text(name, style="bold"), Text(printable(value), overflow="fold"))
    return Panel(shown, title="Metering is up", title_align="left", expand=False)


def _stripe(access: "StripeAccess") -> str:
    from metering.console.stripe_access import is_live

    if access.stand_in:
        return f"NOT STRIPE: a stand-in at {access.base_url}, which charges nobody"
    where = access.base_url or "Stripe itself"
    return f"{where}, {'live: real cards are charged' if is_live(access.api_key) else 'in test mode'}"

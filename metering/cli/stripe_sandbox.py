"""`metering stripe-sandbox`: what `up` and `demo` run instead of Stripe."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from metering.console.errors import CommandError
from metering.console.role import StopWithStdinOption, VerboseOption

if TYPE_CHECKING:
    from metering.runtime.settings import Settings


MAX_PORT: Final = 65_535


def stripe_sandbox(
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Listen there, with STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET: for roles in other containers.",
        ),
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Where it sends webhooks then.")] = None,
    verbose: VerboseOption = False,
    stop_with_stdin: StopWithStdinOption = False,
) -> None:
    """Run a stand-in for Stripe under METERING_DATA_DIR, beside the embedded database only. It charges nobody."""
    from metering.console.stopping import stop_on_signals
    from metering.console.stripe_access import named_stripe
    from metering.runtime.logs import configure_logs
    from metering.runtime.settings import read_settings
    from metering.sandbox.stripe.keeper import PortTakenError, keep_stand_in, serve_stand_in

    settings = read_settings()
    configure_logs("debug" if verbose else settings.log_level)
    named = named_stripe(settings)
    if listen is not None:
        # Beside no database of its own named_stripe takes no live key.
        if named is None or settings.database_url is not None:
            raise CommandError(
                "--listen wants STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET set, and METERING_DATABASE_URL unset."
            )
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
            raise CommandError(f"--listen must be HOST:PORT with a port from 1 to {MAX_PORT}, 0.0.0.0:12111.")
        with stop_on_signals(or_end_of_stdin=stop_with_stdin) as stop:
            try:
                serve_stand_in(
                    settings.data_dir,
                    host,
                    int(port),
                    api_key=named.api_key,
                    webhook_secrets=named.webhook_secrets,
                    webhook_url=webhook,
                    stop=stop,
                )
            except PortTakenError as error:
                raise CommandError(str(error)) from error
        return
    if named is not None:
        raise CommandError("STRIPE_API_KEY is set, so Stripe itself is used: unset it to run a stand-in.")
    with stop_on_signals(or_end_of_stdin=stop_with_stdin) as stop:
        try:
            keep_stand_in(settings.data_dir, webhook_url=webhook_url(settings), stop=stop)
        except PortTakenError as error:
            raise CommandError(str(error)) from error


def webhook_url(settings: "Settings") -> str | None:
    """Where the API of this machine takes webhooks in; None where its port isn't known: then events are read from the list."""
    from metering.console.http_port import local_url

    if settings.http_port == 0:
        return None
    return f"{local_url(settings.http_host, settings.http_port)}/v1/stripe/webhook"

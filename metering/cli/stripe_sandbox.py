"""`metering stripe-sandbox`: what `up` and `demo` run instead of Stripe."""

from typing import TYPE_CHECKING

from metering.console.errors import CommandError
from metering.console.role import StopWithStdinOption, VerboseOption

if TYPE_CHECKING:
    from metering.runtime.settings import Settings


def stripe_sandbox(verbose: VerboseOption = False, stop_with_stdin: StopWithStdinOption = False) -> None:
    """Run a stand-in for Stripe under METERING_DATA_DIR, beside the embedded database only. It charges nobody."""
    from metering.console.stopping import stop_on_signals
    from metering.console.stripe_access import named_stripe
    from metering.runtime.logs import configure_logs
    from metering.runtime.settings import read_settings
    from metering.sandbox.stripe.keeper import PortTakenError, keep_stand_in

    settings = read_settings()
    configure_logs("debug" if verbose else settings.log_level)
    if named_stripe(settings) is not None:
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

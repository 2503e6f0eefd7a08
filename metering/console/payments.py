# Stripe's SDK takes a while to import.
"""What roles and commands that talk to Stripe need for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from metering.console.connections import open_database, open_redis
from metering.console.errors import CommandError
from metering.console.role import RunningRole
from metering.console.stripe_access import find_stripe
from metering.runtime.settings import read_settings

if TYPE_CHECKING:
    from metering.payments.context import Payments
    from metering.payments.stripe_api import StripeApi


@dataclass(frozen=True, slots=True)
class RolePayments:
    """A role's payments, and the secrets that webhooks are signed with: none are believed where there is none."""

    payments: "Payments"
    webhook_secrets: tuple[str, ...] = field(repr=False)


def open_payments(role: RunningRole, *, return_url: str | None = None) -> RolePayments | None:
    """What a role works with that charges cards; None if it was told to stop before Stripe's stand-in was there.

    `return_url` is where customers of top-ups come back to: whoever makes top-ups has to say it.

    Raises SettingsError where a setting is missing, CommandError where no stand-in runs.
    """
    from metering.payments.context import Payments, TopUpLimits
    from metering.payments.stripe_api import connect_stripe
    from metering.runtime.clock import system_clock
    from metering.signals.gates import Gates
    from metering.signals.reload_signals import ReloadSignals
    from workers.enqueue import AttemptQueue

    settings = read_settings()
    access = find_stripe(settings, settings.data_dir, role.stop)
    if access is None:
        return None
    log = structlog.get_logger()
    if access.stand_in:
        log.warning("this is not Stripe but a stand-in: nobody's card is charged", url=access.base_url)
    elif not access.webhook_secrets:
        log.warning(
            "no webhook is believed, as STRIPE_WEBHOOK_SECRET is unset; events are read from Stripe's list"
        )
    payments = Payments(
        engine=role.engine,
        gates=Gates(role.client),
        signals=ReloadSignals(role.client),
        stripe=connect_stripe(access.api_key, base_url=access.base_url),
        clock=system_clock,
        enqueue=AttemptQueue(role.client).enqueue,
        top_up_limits=TopUpLimits(settings.top_up_min_cents, settings.top_up_max_cents),
        return_url=return_url,
    )
    return RolePayments(payments, access.webhook_secrets)


@contextmanager
def open_command_stripe() -> Iterator["StripeApi"]:
    """The Stripe that an operator's command asks; meanwhile logs go to standard error, and leave its output alone.

    Raises SettingsError, and CommandError where there is no Stripe.
    """
    from metering.payments.stripe_api import connect_stripe
    from metering.runtime.logs import configure_logs

    settings = read_settings()
    access = find_stripe(settings, settings.data_dir, threading.Event())
    if access is None:
        raise CommandError("Stripe can't be asked: set STRIPE_API_KEY, or start `metering up`.")
    logs_before = structlog.get_config()
    configure_logs("warning")  # what it does it says by itself
    try:
        yield connect_stripe(access.api_key, base_url=access.base_url)
    finally:
        structlog.configure(**logs_before)


@contextmanager
def open_command_payments(command: str) -> Iterator["Payments"]:
    """What an operator's command works with that settles payments. As `open_command_stripe`."""
    from metering.payments.context import Payments
    from metering.runtime.clock import system_clock
    from metering.signals.gates import Gates
    from metering.signals.reload_signals import ReloadSignals
    from workers.enqueue import AttemptQueue

    with (
        open_database(command=command) as engine,
        open_redis() as client,
        open_command_stripe() as stripe,
    ):
        yield Payments(
            engine=engine,
            gates=Gates(client),
            signals=ReloadSignals(client),
            stripe=stripe,
            clock=system_clock,
            enqueue=AttemptQueue(client).enqueue,
        )

# ruff: noqa: PLC0415 - Stripe's SDK takes a while to import
"""What the roles that talk to Stripe need for it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from metering.console.role import RunningRole
from metering.console.stripe_access import find_stripe
from metering.runtime.settings import read_settings

if TYPE_CHECKING:
    from metering.payments.context import Payments


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
    from workers.enqueue import Nudges

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
        nudge=Nudges(role.client).nudge,
        top_up_limits=TopUpLimits(settings.top_up_min_cents, settings.top_up_max_cents),
        return_url=return_url,
    )
    return RolePayments(payments, access.webhook_secrets)

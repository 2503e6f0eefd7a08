# The sandbox is imported only where it is used: the image does without it.
"""The Stripe that roles talk to: the one that the settings name or, beside the embedded database, a stand-in."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from metering.console.errors import CommandError
from metering.runtime.settings import Settings, SettingsError

JOIN_LIMIT_S: Final = 10.0
"""How long a role waits for the stand-in, which may just be starting."""
POLL_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class StripeAccess:
    """How to talk to Stripe, and what its webhooks are signed with."""

    api_key: str = field(repr=False)
    webhook_secrets: tuple[str, ...] = field(repr=False)
    """Empty: no webhook is believed, and what has happened is read from Stripe's list of events, half a minute later."""
    base_url: str | None
    """Another server than Stripe's own."""
    stand_in: bool = False


def named_stripe(settings: Settings) -> StripeAccess | None:
    """The Stripe that the settings name; None where the stand-in is to be used (docs/reference/settings.md).

    Raises SettingsError where something is missing, or doesn't go together.
    """
    embedded = settings.database_url is None
    secrets = settings.stripe_webhook_secrets
    if settings.stripe_api_key is None:
        if embedded and not secrets:
            return None
        raise SettingsError(
            "STRIPE_API_KEY is missing: set it to a secret key of your Stripe account, sk_live_..., or sk_test_... to try things."
            if not embedded
            else "STRIPE_API_KEY is missing, though STRIPE_WEBHOOK_SECRET is set: set both, or neither to use Stripe's stand-in."
        )
    key = settings.stripe_api_key.get_secret_value()
    if embedded and is_live(key):
        raise SettingsError(
            "STRIPE_API_KEY is a live key, and the embedded database is for trying things: take one that begins with sk_test_,"
            " or set METERING_DATABASE_URL."
        )
    if not embedded and not secrets:
        raise SettingsError(
            "STRIPE_WEBHOOK_SECRET is missing: set it to the signing secret (whsec_...) of the webhook endpoint that you have"
            " made at Stripe for this server's /v1/stripe/webhook."
        )
    return StripeAccess(key, secrets, settings.stripe_api_base)


def named_return_url(settings: Settings) -> str | None:
    """Where a bank sends the customers of top-ups back to; None where the settings leave it to a page of the API's own.

    Raises SettingsError as `named_stripe` does, and where a live key goes with no address or with one that isn't safe: Stripe
    adds the payment's client secret to it.
    """
    named = named_stripe(settings)
    url = settings.return_url
    if named is not None and is_live(named.api_key):
        if url is None:
            raise SettingsError(
                "METERING_RETURN_URL is missing: set it to the page of yours to which a bank is to send a customer back after"
                " 3D Secure, https://app.example.com/billing. Only with a test key does a page of the API's own serve."
            )
        if url.lower().startswith("http://"):
            raise SettingsError(
                "METERING_RETURN_URL must not begin with http:// with a live key: use https://."
            )
    return url


def is_live(api_key: str) -> bool:
    """Whether real cards are charged with it."""
    return api_key.split("_")[1:2] == ["live"]


def find_stripe(settings: Settings, data_dir: Path, stop: threading.Event) -> StripeAccess | None:
    """The Stripe that the settings name, or the stand-in that runs under `data_dir`; None if told to stop before it is there.

    Raises SettingsError as `named_stripe` does, CommandError where no stand-in runs.
    """
    named = named_stripe(settings)
    if named is not None:
        return named
    from metering.sandbox.stripe.keeper import answering_stand_in

    for _ in range(int(JOIN_LIMIT_S / POLL_EVERY_S)):
        if stop.is_set():
            return None
        found = answering_stand_in(data_dir)
        if found is not None:
            return StripeAccess(found.api_key, (found.webhook_secret,), found.url, stand_in=True)
        stop.wait(POLL_EVERY_S)
    raise CommandError(
        f"No stand-in for Stripe runs under {data_dir}: start it with `metering up`, or set STRIPE_API_KEY."
    )

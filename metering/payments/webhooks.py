"""Stripe's webhooks: whether they are Stripe's, and what they say (docs/reference/http-api.md#endpoints)."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe

from db.postgres.clock import ask_clock
from metering.payments.cards import not_done
from metering.payments.context import Payments
from metering.payments.errors import SignatureError
from metering.payments.events import Source, handle, read_event
from metering.payments.stripe_failures import StripeFailure

TOLERANCE: Final = timedelta(minutes=5)
"""How old a signature may be: one that was overheard must not work for ever."""

_PARTS: Final = {"id": str, "type": str, "data": dict}
_TIME: Final = re.compile(r"[0-9]{1,12}")


def receive(payments: Payments, body: bytes, signature: str | None, secrets: Sequence[str]) -> str:
    """Handle a webhook, by its raw body and its `Stripe-Signature`; give what became of it.

    `secrets` are all that count at the moment: while one is being changed for another, both do. Raises SignatureError, and
    ProviderUnavailableError where it can't be handled now and Stripe has to send it again.
    """
    event = _verified(body, signature, secrets, lambda: ask_clock(payments.engine))
    try:
        created_at = datetime.fromtimestamp(event["created"], UTC)
        read = read_event(event["id"], event["type"], created_at, bool(event["livemode"]), event["data"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SignatureError("the body is signed, but is no event of Stripe's") from error
    try:
        return handle(payments, read, source=Source.WEBHOOK)
    except StripeFailure as failure:
        raise not_done(failure) from failure


def _verified(
    body: bytes, signature: str | None, secrets: Sequence[str], ask: Callable[[], datetime]
) -> dict[str, Any]:
    """The event, if it was signed with one of the secrets, and not long ago. For strangers nobody is made to `ask` the time."""
    signed_at = _signed_at(signature or "")
    if signature is None or signed_at is None:
        raise SignatureError("the header Stripe-Signature is missing, or has no time")
    for secret in secrets:
        try:
            # Its own tolerance looks at this machine's clock.
            stripe.WebhookSignature.verify_header(body, signature, secret, tolerance=None)
        except (stripe.SignatureVerificationError, UnicodeDecodeError):
            continue
        age = ask().timestamp() - signed_at
        if abs(age) > TOLERANCE.total_seconds():
            raise SignatureError(
                "the signature is too old, or from the future: is the clock of Postgres's machine right?"
            )
        return _parsed(body)
    raise SignatureError("the signature is not made with our webhook secret")


def _signed_at(signature: str) -> int | None:
    """The one time in a header, in seconds. None where there is none, or the SDK could take another one for it."""
    if not signature.isascii():  # the SDK can't compare it
        return None
    items = [item.partition("=") for item in signature.split(",")]
    times = [value for name, _, value in items if name.strip() == "t"]
    return int(times[0]) if len(times) == 1 and _TIME.fullmatch(times[0]) else None


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SignatureError("the body is signed, but is not JSON") from error
    if not isinstance(event, dict) or not all(
        isinstance(event.get(name), kind) for name, kind in _PARTS.items()
    ):
        raise SignatureError("the body is signed, but is no event of Stripe's")
    return event

"""Failures of Stripe's, by what they mean: refused, undecided, or unknown."""

import re
from typing import Any, Final

import stripe
import structlog

from metering.rules.payments import Missing
from metering.rules.refusals import Concern, refusal_concerns

RESOURCE_MISSING: Final = "resource_missing"
REPLAYED: Final = "Idempotent-Replayed"
"""The header by which Stripe tells that an answer is the one that it keeps for the idempotency key."""
_NAMES_OF_METHODS: Final = frozenset({"payment_method", "invoice_settings[default_payment_method]"})
_UNDECIDED_STATUSES: Final = frozenset({409, 429})
_MISCONFIGURED_STATUSES: Final = frozenset({401, 403})
_KEY_LIKE: Final = re.compile(r"\b(?:sk|rk|pk|whsec)_[\w*.…•-]+", re.IGNORECASE)
_SERVER_ERROR: Final = 500

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class StripeFailure(Exception):  # noqa: N818 - its subclasses say what is the matter
    """Stripe didn't do what it was asked."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        replayed: bool = False,
        missing: Missing | None = None,
        concern: Concern = Concern.INSTALLATION,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.replayed = replayed
        """Whether it is what Stripe keeps for the key, and will say to it again and again."""
        self.missing = missing
        """What of ours Stripe doesn't have, if it is that."""
        self.concern = concern


class StripeRefused(StripeFailure):
    """It never will, as it was asked: nothing was made, nothing was charged. Any 4xx that isn't undecided."""


class StripeDeclined(StripeRefused):
    """A card was declined, and the error holds no PaymentIntent. `code` is the bank's reason, or Stripe's."""


class StripeUndecided(StripeFailure):
    """It has not decided anything: too many requests, the same key still under way. Ask again later."""


class StripeMisconfigured(StripeUndecided):
    """It has not decided anything, and won't before somebody here has mended something: our API key, or its rights."""


class StripeKeyTaken(StripeMisconfigured):
    """It has this idempotency key with other parameters: something may have been made under it before."""


class StripeUnknown(StripeFailure):
    """What it did isn't known: a time-out, a connection cut, 5xx."""


def failure_of(operation: str, error: "stripe.StripeError") -> StripeFailure:
    """What an error of the SDK means (docs/reference/auto-reload.md#pauses)."""
    said = error_body(error)
    status = error.http_status
    code = said.get("decline_code") or error.code or said.get("type") or type(error).__name__
    message = said.get("message") or type(error).__name__
    if status is None or status >= _SERVER_ERROR:
        replayed = (error.headers or {}).get(REPLAYED) == "true"
        return StripeUnknown(code, message, replayed=replayed)
    if isinstance(error, stripe.IdempotencyError):
        return StripeKeyTaken(code, message)
    if status in _MISCONFIGURED_STATUSES:
        return StripeMisconfigured(code, message)
    if status in _UNDECIDED_STATUSES:
        return StripeUndecided(code, message)
    if isinstance(error, stripe.CardError):
        return StripeDeclined(code, message, concern=Concern.CUSTOMER)
    concern = refusal_concerns(type_=said.get("type"), code=said.get("code"), param=said.get("param"))
    return StripeRefused(code, message, missing=_missing(operation, code, said.get("param")), concern=concern)


def _missing(operation: str, code: str, param: str | None) -> Missing | None:
    """What Stripe says it doesn't have, by the parameter: the id in an address is called `id` for customers."""
    if code != RESOURCE_MISSING:
        return None
    if param == "customer" or (param == "id" and operation.startswith("customers.")):
        return Missing.CUSTOMER
    return Missing.PAYMENT_METHOD if param in _NAMES_OF_METHODS else None


def log_refusal(operation: str, outcome: str, error: "stripe.StripeError") -> None:
    """Say what Stripe refuses, and by which of its requests, so that it can be found in its dashboard; never the key.

    A declined card is a customer's everyday; all else is a mistake of ours or a change at Stripe.
    """
    status = error.http_status
    if status is None or status >= _SERVER_ERROR:
        return
    said = error_body(error)
    say = log.info if outcome == "declined" else log.warning
    say(
        "Stripe refused a request",
        operation=operation,
        outcome=outcome,
        status=status,
        type=said.get("type"),
        code=said.get("code"),
        decline_code=said.get("decline_code"),
        param=said.get("param"),
        stripe_request_id=error.request_id,
        intent=(said.get("payment_intent") or {}).get("id"),
        message=said.get("message"),
    )


def error_body(error: "stripe.StripeError") -> dict[str, Any]:
    body = error.json_body
    said = body.get("error") if isinstance(body, dict) else None
    if not isinstance(said, dict):
        return {}
    message = said.get("message")
    return said | {"message": without_keys(message)} if isinstance(message, str) else said


def without_keys(text: str) -> str:
    """What Stripe says, without the API key or the part of one that it shows there."""
    return _KEY_LIKE.sub("[key]", text)


def outcome_of(failure: StripeFailure) -> str:
    """What came of a request, for metrics and the log."""
    if isinstance(failure, StripeDeclined):
        return "declined"
    if isinstance(failure, StripeRefused):
        return "refused"
    return "undecided" if isinstance(failure, StripeUndecided) else "unknown"

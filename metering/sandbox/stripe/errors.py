"""Errors in Stripe's shape, with Stripe's statuses."""

from collections.abc import Sequence
from typing import Any, Final

from metering.sandbox.stripe.values import Json, shown

CARD_ERROR: Final = "card_error"
INVALID_REQUEST: Final = "invalid_request_error"
API_ERROR: Final = "api_error"
IDEMPOTENCY_ERROR: Final = "idempotency_error"


class StripeError(Exception):
    """An answer that is an error. What the request had changed until then is undone, unless `keeps_changes`."""

    keeps_changes = False

    def __init__(self, status: int, error_type: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.error: Json = {"message": message, "type": error_type}
        self.error |= {name: shown(value) for name, value in details.items() if value is not None}
        if "code" in self.error:
            self.error["doc_url"] = doc_url(self.error["code"])

    def body(self, request_id: str) -> Json:
        """The whole answer. `request_id` is named in it, as by Stripe's link to its own log."""
        link = f"https://dashboard.stripe.com/test/logs/{request_id}"
        return {"error": dict(sorted((self.error | {"request_log_url": link}).items()))}


class DeclinedError(StripeError):
    """A card that said no: a result like any other, whose failed charge, intent and events stay."""

    keeps_changes = True

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(402, CARD_ERROR, message, **details)


class InvalidRequestError(StripeError):
    """A request that can't be done as it stands."""

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, **details: Any
    ) -> None:
        super().__init__(400, INVALID_REQUEST, message, code=code, param=param, **details)


class ValidationError(InvalidRequestError):
    """Parameters that can't be right whatever the state is: found before anything is executed, so no key keeps the answer."""


class UnknownParameterError(ValidationError):
    """A parameter that there isn't."""

    def __init__(self, param: str) -> None:
        super().__init__(f"Received unknown parameter: {param}", code="parameter_unknown", param=param)
        self.param = param


class UnknownWordError(ValidationError):
    """A word that isn't one of those that a parameter can be."""

    def __init__(self, param: str, word: str, words: Sequence[str]) -> None:
        super().__init__(f"Invalid {param}: must be one of {', '.join(words)}", param=param)
        self.param, self.word = param, word


class UnsupportedError(ValidationError):
    """What Stripe takes, and the sandbox doesn't: whoever uses it can't be tried here."""

    def __init__(self, what: str, param: str) -> None:
        super().__init__(
            f"Stripe takes {what}, and the sandbox does not support it. (This is the sandbox, not Stripe.)",
            code="unsupported_by_sandbox",
            param=param,
        )
        del self.error["doc_url"]  # Stripe has no page on it


def doc_url(code: str) -> str:
    """Where Stripe explains an error code."""
    return f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"


def no_such(what: str, object_id: str, param: str, *, in_path: bool = False) -> StripeError:
    """An id that names nothing: 404 where it stands in the path, 400 where it is a parameter."""
    return StripeError(
        404 if in_path else 400,
        INVALID_REQUEST,
        f"No such {what}: '{object_id}'",
        code="resource_missing",
        param=param,
    )


def unexpected(request_id: str) -> StripeError:
    """What Stripe answers when something broke on its side."""
    return StripeError(
        500,
        API_ERROR,
        f"An unknown error occurred. If the error persists, name request {request_id}. (This is the sandbox, not Stripe.)",
    )

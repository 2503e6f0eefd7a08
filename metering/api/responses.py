"""Responses: what the API answers with, as its documentation describes it: each answer with its schema and an example."""

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from db.accounts.billing import BillingAccount
from metering.rules.money import format_usd
from metering.rules.payments import CURRENCY

MAX_INT: Final = 2**63 - 1


class Answer(BaseModel):
    """An answer. It may get more fields; those that are there stay."""

    model_config = ConfigDict(frozen=True)


class BillingAccountAnswer(Answer):
    """An organization's billing account."""

    balance_cents: int = Field(description="Current balance in USD cents.")
    balance_usd: str = Field(description="The same in dollars.", pattern=r"^-?\d+\.\d\d$")
    currency: Literal["usd"]
    auto_reload_enabled: bool = Field(description="Whether automatic top-ups are on.")
    auto_reload_minimum_cents: int = Field(
        description="Below this balance a reload is made; 0 while it was never set."
    )
    auto_reload_amount_cents: int = Field(description="What a reload charges; 0 while it was never set.")
    auto_reload_monthly_limit_cents: int | None = Field(
        description="What reloads may charge in a UTC calendar month; null is without limit."
    )
    has_payment_method: bool = Field(description="Whether there is a default payment method.")
    auto_reload_paused: str | None = Field(
        description="Why automatic top-ups rest, although they are on: Stripe's code of the decline, `refunded`, `disputed`, or "
        "another code; null while nothing pauses them."
    )
    held_cents: int | None = Field(
        description="What is held for calls that run: the most that they may still cost. Null while that can't be told."
    )
    available_cents: int | None = Field(
        description="The balance without what is held: what is left for other calls. Null while that can't be told."
    )


def account_answer(account: BillingAccount, now: datetime, held_cents: int | None) -> BillingAccountAnswer:
    """An account as its owner sees it at a time; `held_cents` is None where it can't be told."""
    return BillingAccountAnswer(
        balance_cents=account.balance_cents,
        balance_usd=format_usd(account.balance_cents),
        currency=CURRENCY,
        auto_reload_enabled=account.auto_reload_enabled,
        auto_reload_minimum_cents=account.auto_reload_minimum_cents,
        auto_reload_amount_cents=account.auto_reload_amount_cents,
        auto_reload_monthly_limit_cents=account.auto_reload_monthly_limit_cents,
        has_payment_method=account.has_payment_method,
        auto_reload_paused=account.auto_reload_paused(now),
        held_cents=held_cents,
        available_cents=None if held_cents is None else account.balance_cents - held_cents,
    )


class Problem(Answer):
    """Why something could not be done."""

    detail: str = Field(description="For people.")
    code: str = Field(description="For programs.", pattern="^[a-z_]+$")


class FieldError(Answer):
    """What is wrong with a field."""

    field: str
    message: str


class InvalidRequest(Problem):
    """Bad input, field by field."""

    errors: list[FieldError]


BILLING_ACCOUNT: Final[Mapping[str, Any]] = {
    "balance_cents": 125_000,
    "balance_usd": "1250.00",
    "currency": "usd",
    "auto_reload_enabled": True,
    "auto_reload_minimum_cents": 1_000,
    "auto_reload_amount_cents": 5_000,
    "auto_reload_monthly_limit_cents": None,
    "has_payment_method": True,
    "auto_reload_paused": None,
    "held_cents": 80,
    "available_cents": 124_920,
}

Documented = dict[int | str, dict[str, Any]]
"""Answers by status, as FastAPI takes them."""


def answers(*parts: Documented) -> Documented:
    """All of a route's answers. Several of one status keep their examples side by side."""
    merged: Documented = {}
    for part in parts:
        for status, answer in part.items():
            there = merged.get(status)
            merged[status] = answer if there is None else _side_by_side(there, answer)
    return merged


def answer(
    status: HTTPStatus, model: type[BaseModel], example: Mapping[str, Any], description: str, **more: Any
) -> Documented:
    """One answer."""
    examples = {str(example.get("code", "example")): {"value": dict(example)}}
    content = {"application/json": {"examples": examples}}
    return {int(status): {"model": model, "description": description, "content": content, **more}}


def documented_error(status: HTTPStatus, code: str, detail: str, description: str, **more: Any) -> Documented:
    """An answer that is an error."""
    return answer(status, Problem, {"detail": detail, "code": code}, description, **more)


def invalid_request(field: str, message: str) -> Documented:
    """Bad input, with an example of it."""
    example = {
        "detail": f"{field}: {message}",
        "code": "invalid_request",
        "errors": [{"field": field, "message": message}],
    }
    return answer(HTTPStatus.BAD_REQUEST, InvalidRequest, example, "Bad input.")


def _side_by_side(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    examples = {
        name: example
        for each in (one, other)
        for name, example in each["content"]["application/json"]["examples"].items()
    }
    model = one["model"] if one["model"] is other["model"] else one["model"] | other["model"]
    return {
        **one,
        "model": model,
        "description": f"{one['description']} {other['description']}",
        "content": {"application/json": {"examples": examples}},
    }


_RETRY_AFTER: Final = {
    "Retry-After": {"schema": {"type": "string"}, "description": "In seconds.", "required": True}
}
UNAUTHENTICATED: Final = answers(
    documented_error(
        HTTPStatus.UNAUTHORIZED,
        "unauthenticated",
        "this API key is not known, or was revoked",
        "No key that counts was sent.",
        headers={
            "WWW-Authenticate": {"schema": {"type": "string"}, "description": "`Bearer`", "required": True}
        },
    ),
    documented_error(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limited",
        "too many requests with wrong API keys or tokens came from your address: wait 42 s",
        "Wrong keys came from this address, too many of them, and this one is wrong too; or more than 200 requests of this"
        " organization wait already. Said a second late.",
        headers=_RETRY_AFTER,
    ),
)
BODY_REFUSED: Final = answers(
    documented_error(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        "the body is longer than 65536 bytes",
        "The body is too long.",
    ),
    documented_error(
        HTTPStatus.REQUEST_TIMEOUT,
        "request_timeout",
        "the body did not come within 20 seconds",
        "The body took too long to come; nothing was done.",
    ),
)
FAILED: Final = answers(
    documented_error(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "something went wrong here; it has been noted",
        "A mistake of ours.",
    ),
    documented_error(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        "this can't be answered now: try again in a moment",
        "Come again in a moment.",
        headers=_RETRY_AFTER,
    ),
)
PROVIDER_UNAVAILABLE: Final = answers(
    documented_error(
        HTTPStatus.BAD_GATEWAY,
        "provider_unavailable",
        "the payment provider can't be reached, or has not decided yet; the same request is safe to repeat",
        "Stripe can't be asked, or what it did isn't known; the same request is safe to repeat.",
    ),
    documented_error(
        HTTPStatus.BAD_GATEWAY,
        "provider_misconfigured",
        "the payment provider does not accept our requests at the moment, so it isn't known yet what became of this one."
        " To repeat the same request charges nothing twice, but is of no use before we have mended this: tell us",
        "Stripe doesn't take the operator's key, or not for this; a repeat charges nothing twice, and is of no use before that"
        " is mended.",
    ),
    documented_error(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "provider_refused",
        "the payment provider refuses this request, and charges nothing for it; to repeat it is no use: tell us",
        "Stripe refuses the request as we make it, and charges nothing; to repeat it is no use.",
    ),
)
CARD_DECLINED: Final = documented_error(
    HTTPStatus.PAYMENT_REQUIRED,
    "card_declined",
    "Your card has insufficient funds. (insufficient_funds)",
    "The bank declined the card.",
)
INVALID_PAYMENT_METHOD: Final = documented_error(
    HTTPStatus.BAD_REQUEST,
    "invalid_payment_method",
    "payment_method_id is not a saved card of this organization: save it first with a SetupIntent",
    "Not a payment method of this organization.",
)
PAYMENT_METHOD_REQUIRED: Final = documented_error(
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "payment_method_required",
    "there is no card on file: save one first",
    "There is no card on file.",
)
ACCOUNT: Final = answer(
    HTTPStatus.OK, BillingAccountAnswer, BILLING_ACCOUNT, "The billing account, as it now is."
)

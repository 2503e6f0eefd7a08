"""What clients are told when something can't be done: one shape, one table (docs/reference/http-api.md#errors)."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import psycopg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from db.models.errors import OrgError
from db.postgres.failures import Failure, diagnose, driver_error
from metering.api.thread_pools import OverloadedError, OverShareError
from metering.payments.errors import (
    CardDeclinedError,
    IdempotencyConflictError,
    InvalidAmountError,
    InvalidPaymentMethodError,
    InvalidSettingError,
    PaymentMethodRequiredError,
    ProviderMisconfiguredError,
    ProviderRefusedError,
    ProviderUnavailableError,
    SignatureError,
)


@dataclass(frozen=True, slots=True)
class InvalidField:
    """What is wrong with one field: of the body, the path, the query or the headers."""

    field: str
    message: str


class InvalidRequestError(Exception):
    """Bad input."""

    def __init__(self, *problems: InvalidField) -> None:
        super().__init__("; ".join(f"{each.field}: {each.message}" for each in problems))
        self.problems = problems


class BodyTooLargeError(Exception):
    """The body is longer than is read."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is longer than {limit_bytes} bytes")


class BodyTooSlowError(Exception):
    """The body didn't come in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the body did not come within {limit_s:.0f} seconds")


class UnauthenticatedError(Exception):
    """Nobody whom we know asks."""

    def __init__(self, detail: str = "this API key is not known, or was revoked") -> None:
        super().__init__(detail)


class TooManyFailuresError(Exception):
    """Wrong keys came from there, too many of them."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(
            f"too many requests with wrong API keys or tokens came from your address: wait {wait_s} s"
        )
        self.wait_s = wait_s


class NotFoundError(Exception):
    """It isn't there, or not for whoever asks: which of both is not told."""


class UnavailableError(Exception):
    """What this needs is away: come again later. Nothing was done, or it is safe to repeat."""

    def __init__(self) -> None:
        super().__init__("this can't be answered now: try again in a moment")


TABLE: Final[Mapping[type[Exception], tuple[HTTPStatus, str]]] = {
    InvalidRequestError: (HTTPStatus.BAD_REQUEST, "invalid_request"),
    InvalidSettingError: (HTTPStatus.BAD_REQUEST, "invalid_request"),
    InvalidAmountError: (HTTPStatus.BAD_REQUEST, "invalid_amount"),
    InvalidPaymentMethodError: (HTTPStatus.BAD_REQUEST, "invalid_payment_method"),
    SignatureError: (HTTPStatus.BAD_REQUEST, "invalid_signature"),
    UnauthenticatedError: (HTTPStatus.UNAUTHORIZED, "unauthenticated"),
    TooManyFailuresError: (HTTPStatus.TOO_MANY_REQUESTS, "rate_limited"),
    NotFoundError: (HTTPStatus.NOT_FOUND, "not_found"),
    IdempotencyConflictError: (HTTPStatus.CONFLICT, "idempotency_conflict"),
    BodyTooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"),
    BodyTooSlowError: (HTTPStatus.REQUEST_TIMEOUT, "request_timeout"),
    PaymentMethodRequiredError: (HTTPStatus.UNPROCESSABLE_ENTITY, "payment_method_required"),
    CardDeclinedError: (HTTPStatus.PAYMENT_REQUIRED, "card_declined"),
    ProviderRefusedError: (HTTPStatus.INTERNAL_SERVER_ERROR, "provider_refused"),
    ProviderMisconfiguredError: (HTTPStatus.BAD_GATEWAY, "provider_misconfigured"),
    ProviderUnavailableError: (HTTPStatus.BAD_GATEWAY, "provider_unavailable"),
    OverShareError: (HTTPStatus.TOO_MANY_REQUESTS, "rate_limited"),
    OverloadedError: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
    UnavailableError: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
}
"""Every error that a client may be told of: its status and its code."""

RETRY_AFTER_S: Final = 1
REFUSAL_DELAY_S: Final = 1.0
"""How late a 429 is said: who asks again at once, whatever he is told, would otherwise cost more the quicker he is refused."""
INTERNAL_ERROR: Final = ("something went wrong here; it has been noted", "internal_error")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def error_response(
    status: int, detail: str, code: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """An answer in the contract's shape for errors."""
    return JSONResponse({"detail": detail, "code": code, **more}, status, headers)


def invalid_request_response(*problems: InvalidField) -> JSONResponse:
    """The answer to bad input."""
    error = InvalidRequestError(*problems)
    status, code = TABLE[InvalidRequestError]
    errors = [{"field": each.field, "message": each.message} for each in problems]
    return error_response(status, str(error), code, errors=errors)


def add_error_handlers(app: FastAPI) -> None:
    """Let `app` answer in the contract's shape, whoever raises: the routes, the framework, the database."""
    for kind in TABLE:
        app.add_exception_handler(kind, _respond)
    app.add_exception_handler(OrgError, _org_is_gone)
    app.add_exception_handler(RequestValidationError, _refused_by_the_framework)
    app.add_exception_handler(HTTPException, _raised_by_the_framework)
    for outage in (SQLAlchemyError, psycopg.Error, RedisError):
        app.add_exception_handler(outage, _outage)


async def _respond(_request: Request, error: Exception) -> JSONResponse:
    status, code = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    if isinstance(error, InvalidRequestError):
        return invalid_request_response(*error.problems)
    if isinstance(error, InvalidSettingError):
        return invalid_request_response(InvalidField(error.field, error.message))
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="metering"'
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        wait_s = error.wait_s if isinstance(error, TooManyFailuresError) else RETRY_AFTER_S
        headers["Retry-After"] = str(wait_s)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        await asyncio.sleep(REFUSAL_DELAY_S)
    return error_response(status, str(error), code, headers=headers)


async def _org_is_gone(request: Request, _error: Exception) -> JSONResponse:
    """A key that outlived its org."""
    return await _respond(request, UnauthenticatedError())


async def _refused_by_the_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for these alone
    return await _respond(request, InvalidRequestError(*field_errors(error.errors())))


def field_errors(errors: Sequence[Any]) -> list[InvalidField]:
    """pydantic's errors in the contract's words. A location begins with where the field is, as FastAPI has it."""
    return [
        InvalidField(".".join(map(str, each["loc"][1:])) or str(each["loc"][0]), _message(each))
        for each in errors
    ]


def _message(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a known field"
        case "json_invalid":
            return "must be JSON"
        case _:
            said = str(error["msg"]).removeprefix("Value error, ")
            return (
                said.removeprefix("Input should be ").join(("must be ", ""))
                if said.startswith("Input ")
                else said
            )


async def _raised_by_the_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for these alone
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        return await _respond(request, NotFoundError("there is nothing here"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _allowed(request) or headers.get("Allow", "")
        return error_response(
            405, f"{request.method} is not allowed here", "method_not_allowed", headers=headers
        )
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
    return error_response(error.status_code, str(error.detail), code, headers=headers)


def _allowed(request: Request) -> str:
    """What may be done at this path, by all its routes: the framework names the first one's alone."""
    path = getattr(request.scope.get("route"), "path", None)
    return ", ".join(sorted(method.upper() for method in request.app.openapi()["paths"].get(path, {})))


async def _outage(request: Request, error: Exception) -> JSONResponse:
    """Postgres or Redis is away or busy. Anything else that they refuse is a mistake of ours."""
    if not isinstance(error, RedisError) and diagnose(error) is Failure.POISON:
        raise error
    said = str(driver_error(error) or error)  # the driver's own words: not the values that were sent
    log.warning("a request can't be answered now", path=request.url.path, error=" ".join(said.split())[:400])
    return await _respond(request, UnavailableError())

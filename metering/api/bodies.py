"""Reading what clients send: bounded, and taken apart only once it is known who asks."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from metering.api.auth import OrgId, known_org
from metering.api.errors import (
    BodyTooLargeError,
    BodyTooSlowError,
    InvalidField,
    InvalidRequestError,
    field_errors,
)

MAX_BODY_BYTES: Final = 65_536
"""How long a body may be: several hundred times what any route asks for."""
BODY_LIMIT_S: Final = 20.0
"""How long a body may take to come."""
JSON: Final = "application/json"
_GZIP: Final = zlib.MAX_WBITS | 16
"""gzip's frame, and no other."""


class Body(BaseModel):
    """A JSON object of exactly these fields: `true`, `1.0` and `"1"` are no integers, and a field that isn't known is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


B = TypeVar("B", bound=Body)


async def read_body(request: Request, *, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body as it came. Raises BodyTooLargeError or BodyTooSlowError, and reads no further then."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit_bytes:
        raise BodyTooLargeError(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            async for part in request.stream():
                body += part
                if len(body) > limit_bytes:
                    raise BodyTooLargeError(limit_bytes)
    except TimeoutError:
        raise BodyTooSlowError(BODY_LIMIT_S) from None
    return bytes(body)


async def read_json(request: Request, *, limit_bytes: int) -> bytes:
    """A body of JSON that may be sent with gzip. Raises what read_body() raises, and InvalidRequestError.

    The limit counts for what it is unpacked: a few bytes can become very many.
    """
    if media_type(request) != JSON:
        raise InvalidRequestError(InvalidField("Content-Type", f"must be {JSON}"))
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise InvalidRequestError(InvalidField("Content-Encoding", "must be gzip, or left out"))
    body = await read_body(request, limit_bytes=limit_bytes)
    return body if encoding == "identity" else _unpacked(body, limit_bytes)


def _unpacked(body: bytes, limit_bytes: int) -> bytes:
    unpacking = zlib.decompressobj(_GZIP)
    try:
        unpacked = unpacking.decompress(body, limit_bytes + 1)
    except zlib.error:
        raise InvalidRequestError(InvalidField("body", "is no gzip")) from None
    if len(unpacked) > limit_bytes:
        raise BodyTooLargeError(limit_bytes)
    if not unpacking.eof or unpacking.unused_data:
        raise InvalidRequestError(InvalidField("body", "must be one whole gzip member"))
    return unpacked


def json_body(model: type[B], who: Callable[..., Any] = known_org) -> Callable[[Request, Any], Awaitable[B]]:
    """A dependency that gives the body as a `model`. It asks for `who` first: who isn't known is told nothing but that."""

    async def read(request: Request, _: Annotated[Any, Depends(who)]) -> B:
        if media_type(request) != JSON:
            raise InvalidRequestError(InvalidField("Content-Type", f"must be {JSON}"))
        return _parse(model, await read_body(request))

    return read


async def no_body(request: Request, _: OrgId) -> None:
    """A dependency that refuses fields where none are asked for; an empty object is none."""
    body = await read_body(request)
    if body.strip():
        _parse(Body, body)


def media_type(request: Request) -> str:
    """What a request says its body is; "" where it says nothing."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parse(model: type[B], body: bytes) -> B:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequestError(
            *field_errors([{**each, "loc": ("body", *each["loc"])} for each in problems])
        ) from None


def describes(model: type[Body], example: dict[str, Any]) -> dict[str, Any]:
    """A route's `openapi_extra`: what its body is to be."""
    content = {"schema": model.model_json_schema(), "example": example}
    return {"requestBody": {"required": True, "content": {JSON: content}}}

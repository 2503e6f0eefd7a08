"""`/v1/calls/completed`: completed calls over HTTP, for telephony that doesn't speak Redis.

See docs/reference/call-events.md#over-http.
"""

from functools import partial
from http import HTTPStatus
from typing import Final, Literal

import redis
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from metering.api.auth import telephony
from metering.api.bodies import JSON, read_json
from metering.api.context import context_of
from metering.api.errors import (
    RETRY_AFTER_S,
    InvalidField,
    InvalidRequestError,
    error_response,
    invalid_request_response,
)
from metering.api.event_batches import part_events
from metering.api.event_intake import Taken, explain, take_events
from metering.api.parameters import plain_query
from metering.api.responses import (
    BODY_REFUSED,
    FAILED,
    UNAUTHENTICATED,
    Answer,
    Problem,
    answer,
    answers,
    invalid_request,
)
from metering.rules.rejections import Rejection

router = APIRouter(prefix="/v1/calls", tags=["Calls"])

MAX_EVENTS: Final = 1_000
MAX_BODY_BYTES: Final = 1_048_576
"""Of a body, unpacked."""
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class EventResult(Answer):
    """What became of one event."""

    status: Literal["accepted", "invalid"] = Field(
        description="`invalid`: it can't be billed as it is. It is in the stream all the same, and kept as a rejected event."
    )
    field: str | None = Field(description="The field that is wrong, or `event`; null where it was accepted.")
    message: str | None = Field(description="What is wrong with it.")
    stream_id: str = Field(description="The id of the event's entry in the stream.")


class CompletedAnswer(Answer):
    """The events are in the stream."""

    accepted: int = Field(description="How many were accepted.")
    results: list[EventResult] = Field(description="Event by event, in their order.")


class NotTakenAnswer(Problem):
    """The stream didn't take all of them."""

    accepted: int = Field(
        description="How many events, counted from the first, were surely taken. To send all of them again is safe."
    )


_TOOK_SOME: Final = (
    "of 1000 events the first 500 were surely taken. Send them again in a moment: a call is billed once"
)
_ACCEPTED: Final = {"status": "accepted", "field": None, "message": None, "stream_id": "1776709506201-0"}
_EVENT: Final = {
    "call_id": 987654321,
    "org_id": 42,
    "tier": "bolt",
    "direction": "outbound",
    "duration_seconds": 75,
    "ended_at": "2026-04-20T18:25:06.201Z",
}
_EVENT_SCHEMA: Final = {
    "type": "object",
    "description": "A completed call, as it would stand in the stream. Unknown fields are ignored.",
}


@router.post(
    "/completed",
    status_code=HTTPStatus.ACCEPTED,
    summary="Push completed calls",
    dependencies=[plain_query(telephony)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {
                        "oneOf": [
                            {**_EVENT_SCHEMA, "required": ["call_id"]},
                            {
                                "type": "object",
                                "properties": {
                                    "events": {
                                        "type": "array",
                                        "maxItems": MAX_EVENTS,
                                        "items": _EVENT_SCHEMA,
                                    }
                                },
                                "required": ["events"],
                                "not": {"required": ["call_id"]},
                            },
                        ]
                    },
                    "example": {"events": [_EVENT]},
                }
            },
        }
    },
    responses=answers(
        answer(
            HTTPStatus.ACCEPTED,
            CompletedAnswer,
            {"accepted": 1, "results": [_ACCEPTED]},
            "They are in the stream. Those that can't be billed as they are say so, and are kept as rejected events.",
        ),
        invalid_request("duration_seconds", "must be a number from 0 to 604800, at most 6 decimals"),
        UNAUTHENTICATED,
        BODY_REFUSED,
        FAILED,
        answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            NotTakenAnswer,
            {
                "detail": f"the stream can not be reached, or refuses: {_TOOK_SOME}",
                "code": "unavailable",
                "accepted": 500,
            },
            "Redis is away. Send them again: a call is billed once.",
        ),
        answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            NotTakenAnswer,
            {"detail": f"the stream is full: {_TOOK_SOME}", "code": "queue_full", "accepted": 500},
            "Redis is full. Keep them, and send them again later.",
        ),
    ),
)
async def post_completed_calls(request: Request) -> JSONResponse:
    """One event, or `{"events": [...]}`; the body may be sent with gzip. Safe to send again: a call is billed once."""
    context = context_of(request)
    with context.thread_pools.calls_in_hand.one():
        body = await read_json(request, limit_bytes=MAX_BODY_BYTES)
        return await context.thread_pools.calls.run(partial(_take, context.stream, body))


def _parted(body: bytes) -> tuple[list[bytes], bool]:
    """The events in a body, each as it came, and whether it is one alone. Raises InvalidRequestError."""
    if not body.strip():
        raise InvalidRequestError(InvalidField("body", 'must be an event, or {"events": [...]}'))
    try:
        events = part_events(body)
    except ValueError:
        raise InvalidRequestError(InvalidField("events", "must be a list of events")) from None
    if events is None:
        return [body], True  # whatever it is: it is kept as what it is
    if len(events) > MAX_EVENTS:
        raise InvalidRequestError(
            InvalidField(
                "events", f"must be at most {MAX_EVENTS} events, not {len(events)}: send them in parts"
            )
        )
    return events, False


def _take(stream: redis.Redis, body: bytes) -> JSONResponse:
    """All of the work, in a thread: to part and judge a MB would hold up whoever else is served."""
    raws, alone = _parted(body)
    return _told(take_events(stream, raws), alone=alone)


def _told(taken: Taken, *, alone: bool) -> JSONResponse:
    if taken.refusal is not None:
        return _not_taken(taken, taken.refusal)
    if alone and (rejection := taken.judged[0]) is not None:
        field, message = explain(rejection)
        return invalid_request_response(
            InvalidField(
                field, f"{message}; the event is kept as a rejected one, and nothing is billed for it"
            )
        )
    results = [
        _result(rejection, stream_id.decode())
        for rejection, stream_id in zip(taken.judged, taken.answered, strict=True)
    ]
    return JSONResponse({"accepted": len(results) - taken.invalid, "results": results}, HTTPStatus.ACCEPTED)


def _result(rejection: Rejection | None, stream_id: str) -> dict[str, str | None]:
    if rejection is None:
        return {"status": "accepted", "field": None, "message": None, "stream_id": stream_id}
    field, message = explain(rejection)
    return {"status": "invalid", "field": field, "message": message, "stream_id": stream_id}


def _not_taken(taken: Taken, error: Exception) -> JSONResponse:
    is_full = isinstance(error, redis.exceptions.OutOfMemoryError)
    log.warning(
        "completed calls could not be pushed",
        events=len(taken.judged),
        surely_pushed=taken.surely,
        error=" ".join(str(error).split())[:400],
    )
    return error_response(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{'the stream is full' if is_full else 'the stream can not be reached, or refuses'}: of {len(taken.judged)} events the"
        f" first {taken.surely} were surely taken. Send them again in a moment: a call is billed once",
        "queue_full" if is_full else "unavailable",
        headers={"Retry-After": str(RETRY_AFTER_S)},
        accepted=taken.surely,
    )

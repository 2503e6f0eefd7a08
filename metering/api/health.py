"""Whether the process lives, and whether what it needs is there."""

from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Final, Literal

from anyio import fail_after
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import Engine, text

from db.postgres.clock import CLOCKS_DIFFER_AFTER, measure_difference
from db.postgres.engine import transaction
from db.postgres.session import refuse_read_only
from metering.api.context import ApiContext, context_of
from metering.api.errors import error_response
from metering.api.responses import Answer, Problem, answer, answers
from metering.runtime.clock import Clock
from metering.runtime.health import HEALTH

router = APIRouter(tags=["Health"])

LIMIT_S: Final = 3.0
"""How long each may take to answer."""


class OkAnswer(Answer):
    """All is well."""

    ok: Literal[True] = True


class NotReadyAnswer(Problem):
    """Something that is needed is away."""

    code: Literal["not_ready"]
    away: list[str] = Field(
        description="`postgres`, `redis`: they don't answer, or take no writes. `clock`: this machine's differs from that of"
        " Postgres's by more than 30 s."
    )
    refused: list[str] = Field(
        description="`postgres`, `redis`: they answer, and refuse something that the API needs, or aren't set up for it; the log"
        " says what. That doesn't pass by itself."
    )


@router.get(
    "/v1/healthz",
    summary="Whether the process lives",
    responses=answer(HTTPStatus.OK, OkAnswer, {"ok": True}, "It does."),
)
async def healthz() -> OkAnswer:
    """Asks nobody."""
    return OkAnswer()


@router.get(
    "/readyz",
    summary="Whether it can work",
    response_model=OkAnswer,
    responses=answers(
        answer(HTTPStatus.OK, OkAnswer, {"ok": True}, "Postgres and Redis are there, and take writes."),
        answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            NotReadyAnswer,
            {"detail": "away: redis", "code": "not_ready", "away": ["redis"], "refused": []},
            "Something is away, takes no writes, or refuses.",
        ),
    ),
)
async def readyz(request: Request) -> JSONResponse:
    """Asks Postgres and Redis whether they can be written: a server that was demoted answers everything else."""
    context = context_of(request)
    difference = await _clock_difference(context)
    asked = {"postgres": difference is not None, "redis": await context.gate_reader.takes_writes()}
    away = [name for name, answers in asked.items() if not answers]
    if difference is not None and abs(difference) > CLOCKS_DIFFER_AFTER:
        away.append("clock")
    refused = sorted({each.server for each in HEALTH.refusals()})
    if not away and not refused:
        return JSONResponse({"ok": True})
    detail = "; ".join(
        f"{what}: {', '.join(names)}" for what, names in (("away", away), ("refused", refused)) if names
    )
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, "not_ready", away=away, refused=refused)


async def _clock_difference(context: ApiContext) -> timedelta | None:
    """How far this process's clock is ahead of Postgres's; None where Postgres can't be asked, or written."""
    try:
        with fail_after(LIMIT_S):
            # Left behind where it hangs: so the pool bounds how many do.
            return await run_sync(
                partial(_ask, context.engine, context.payments.clock),
                abandon_on_cancel=True,
                limiter=context.thread_pools.health,
            )
    except Exception:  # noqa: BLE001 - whatever it is, it is no answer
        return None


def _ask(engine: Engine, clock: Clock) -> timedelta:
    with transaction(engine) as connection:
        refuse_read_only(connection.scalar(text("SHOW transaction_read_only")))
    return measure_difference(engine, clock)

"""The HTTP face, put together (docs/reference/http-api.md)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from fastapi import FastAPI

from metering import __version__
from metering.api import (
    accounts,
    calls,
    cards,
    completed_calls,
    gates,
    health,
    top_ups,
    transactions,
    webhooks,
)
from metering.api.context import ApiContext
from metering.api.docs_page import serve_docs
from metering.api.errors import add_error_handlers
from metering.api.http_metrics import HttpMetrics
from metering.api.openapi import describe
from metering.api.prices import keep_reading
from metering.api.quick_answers import QuickAnswers
from metering.api.return_page import serve_return_page

BACKGROUND_LIMIT_S: Final = 5.0
"""How long what is read or written beside the requests may hold up the end of the server: Postgres may not answer."""


def make_app(context: ApiContext) -> FastAPI:
    """The API on `context`, whose connections for quick answers are closed when the server ends."""

    async def read_prices() -> None:
        now = context.payments.clock()
        await context.thread_pools.gate.run(partial(context.prices.read, context.engine, now))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        stop = asyncio.Event()
        await context.reads.open()
        background = [
            asyncio.create_task(keep_reading(read_prices, stop)),
            asyncio.create_task(context.key_uses.keep_writing(stop)),
            asyncio.create_task(context.refusal_notes.keep_writing(stop)),
        ]
        yield
        stop.set()
        # Cut off, its thread would go on, and outlive the engine that it uses.
        await asyncio.wait(background, timeout=BACKGROUND_LIMIT_S)
        for each in background:
            each.cancel()
        await context.gate_reader.close()
        await context.reads.close()

    app = FastAPI(
        title="Metering API",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # a redirect would send a key to whatever host the request names
    )
    app.state.context = context
    routers = [
        each.router
        for each in (
            accounts,
            top_ups,
            cards,
            transactions,
            gates,
            completed_calls,
            calls,
            webhooks,
            health,
        )
    ]
    for router in routers:
        app.include_router(router)
    app.openapi = describe(app, routers)  # type: ignore[method-assign]  # the framework's own way to do it
    app.add_middleware(QuickAnswers, context=context)
    app.add_middleware(HttpMetrics)  # the outermost: it counts those too
    add_error_handlers(app)
    serve_docs(app)
    serve_return_page(app)
    return app

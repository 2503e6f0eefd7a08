"""The HTTP face, put together (CONTRACT.md section 5)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from metering.api import accounts, cards, gates, health, top_ups, transactions, webhooks
from metering.api.context import ApiContext
from metering.api.docs_page import serve_docs
from metering.api.openapi import describe
from metering.api.problems import tell_problems
from metering.api.watch import Watch


def make_app(context: ApiContext) -> FastAPI:
    """The API on `context`, whose gate reader is closed when the server ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await context.gate_reader.close()

    app = FastAPI(
        title="Metering API",
        version=version("metering"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # a redirect would send a key to whatever host the request names
    )
    app.state.context = context
    routers = [each.router for each in (accounts, top_ups, cards, transactions, gates, webhooks, health)]
    for router in routers:
        app.include_router(router)
    app.openapi = describe(app, routers)  # type: ignore[method-assign]  # the framework's own way to do it
    app.add_middleware(Watch)
    tell_problems(app)
    serve_docs(app)
    return app

"""`metering api`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from metering.console.role import RunningRole, StopWithStdinOption, VerboseOption, running_role

if TYPE_CHECKING:
    from metering.api.context import ApiContext

STATEMENT_TIMEOUT_MS: Final = 15_000
"""How long Postgres may take over what a customer only reads."""


def api(verbose: VerboseOption = False, stop_with_stdin: StopWithStdinOption = False) -> None:
    """Serve the HTTP API on METERING_HTTP_HOST and METERING_HTTP_PORT, until told to stop.

    SIGTERM and Ctrl-C end it with the requests in hand finished. Any number may run side by side, each on a port of its own.
    """
    import structlog

    from metering.api.app import make_app
    from metering.api.return_page import PATH
    from metering.api.server import bind, serve
    from metering.api.thread_pools import PAYMENTS_CONNECTIONS
    from metering.console.connections import LOCK_TIMEOUT_MS
    from metering.console.http_port import local_url
    from metering.console.stripe_access import named_return_url
    from metering.runtime.settings import read_settings

    settings = read_settings()
    return_url = named_return_url(settings)
    with (
        # Before anything is waited for: the port may be taken.
        bind(settings.http_host, settings.http_port) as bound,
        running_role(
            "api",
            lock_timeout_ms=LOCK_TIMEOUT_MS,
            pool_size=PAYMENTS_CONNECTIONS,
            verbose=verbose,
            stop_with_stdin=stop_with_stdin,
            charges=True,
        ) as role,
    ):
        url = local_url(settings.http_host, bound.getsockname()[1])
        with _context(role, return_url=return_url or f"{url}{PATH}") as context:
            if context is None:
                return
            log = structlog.get_logger()
            serve(
                make_app(context),
                bound,
                stop=role.stop,
                trusted_proxies=settings.trusted_proxy_networks,
                ready=lambda: log.info("the API is served", role="api", url=url, docs=f"{url}/docs"),
            )


@contextmanager
def _context(role: RunningRole, *, return_url: str) -> "Iterator[ApiContext | None]":
    """What the API works with; None if the role was told to stop before Stripe was there."""
    from db.accounts.quick_reads import QuickReads
    from db.postgres.engine import make_engine
    from db.postgres.metrics import CONNECTIONS, use_of
    from metering.api.context import ApiContext
    from metering.api.thread_pools import QUICK_CONNECTIONS
    from metering.console.connections import LOCK_TIMEOUT_MS, application_name, located
    from metering.console.payments import open_payments
    from metering.runtime.redis_connection import connect_redis, connect_redis_async
    from metering.runtime.settings import read_settings
    from metering.signals import gate_reader
    from metering.signals.holds import HoldsAsync

    opened = open_payments(role, return_url=return_url)
    if opened is None:
        yield None
        return
    quick = make_engine(
        role.engine.url.render_as_string(hide_password=False),
        application_name=application_name("api"),
        pool_size=QUICK_CONNECTIONS,
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        statement_timeout_ms=STATEMENT_TIMEOUT_MS,
    )
    try:
        reads = QuickReads(quick.url, application_name=application_name("api quick"))
        with (
            located(postgres=False) as found,
            CONNECTIONS.told("api_threads", lambda: use_of(quick)),
            CONNECTIONS.told("api_quick", reads.use),
        ):
            client = connect_redis_async(
                found.redis_url, timeout_s=gate_reader.TIMEOUT_S, max_connections=gate_reader.MAX_CONNECTIONS
            )
            with connect_redis(found.redis_url) as stream:
                yield ApiContext(
                    engine=quick,
                    reads=reads,
                    gate_reader=gate_reader.GateReader(client),
                    holds=HoldsAsync(client),
                    stream=stream,
                    payments=opened.payments,
                    webhook_secrets=opened.webhook_secrets,
                    telephony_token=read_settings().telephony_token,
                )
    finally:
        quick.dispose()

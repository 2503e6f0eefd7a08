"""The sandbox as a whole: start one, talk to it with the real SDK, turn its controls."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from metering.runtime.clock import Clock, system_clock
from metering.sandbox.stripe.accounts import keys_kept, open_first
from metering.sandbox.stripe.answering import Answer, Answering, Request
from metering.sandbox.stripe.api_keys import ApiKeys
from metering.sandbox.stripe.controls import Controls
from metering.sandbox.stripe.faults import Faults, RequestFault, WebhookFault
from metering.sandbox.stripe.remote import PREFIX, answer_control
from metering.sandbox.stripe.server import HOST, Server
from metering.sandbox.stripe.store import Store
from metering.sandbox.stripe.webhooks import RETRY_DELAYS_S, Target, Webhooks

API_KEY: Final = "sk_test_sandbox"
WEBHOOK_SECRET: Final = "whsec_sandbox"  # noqa: S105 - it protects nothing

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class StripeSandbox(Controls):
    """A stand-in for Stripe that runs while it is entered. It is not Stripe: nothing real is charged. On loopback only, unless
    another `host` is said.

    `StripeClient(sandbox.api_key, base_addresses={"api": sandbox.url})` talks to it. With a `path` its objects, answers and
    undelivered webhooks outlive the process, a killed one too; without, they live in memory. `clock` is its time for all but the
    retries of webhooks: `created`, the life of keys and events, signatures.

    Entering raises OSError where `port` is taken, sqlite3.Error where another process has `path`.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        clock: Clock = system_clock,
        host: str = HOST,
        port: int = 0,
        api_keys: Sequence[str] = (API_KEY,),
        webhook_url: str | None = None,
        webhook_secrets: Sequence[str] = (WEBHOOK_SECRET,),
        webhook_retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
    ) -> None:
        self._path = path
        self._clock = clock
        self._host = host
        self._port = port
        self._keys = ApiKeys(api_keys)
        self._first_target = None if webhook_url is None else Target(webhook_url, tuple(webhook_secrets))
        self._retry_delays_s = tuple(webhook_retry_delays_s)

    def __enter__(self) -> Self:
        """Start to answer."""
        self._stopping = threading.Event()
        request_faults, webhook_faults = Faults[RequestFault](), Faults[WebhookFault]()
        store = Store(self._path, self._clock)
        try:
            open_first(store)
            self._keys.set_others(keys_kept(store))
            webhooks = Webhooks(store, self._clock, webhook_faults, self._first_target, self._retry_delays_s)
            answering = Answering(store, self._keys, request_faults, self._stopping)
            super().__init__(store, self._keys, answering, webhooks, request_faults, webhook_faults)
            self._server = Server(self._port, self._answer, self._clock, self._host)
        except BaseException:
            store.close()
            raise
        webhooks.start()
        self._server.start()
        log.warning("this is a sandbox, not Stripe: nothing real is charged", url=self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: connections end, hanging requests are executed and answered to nobody."""
        self._stopping.set()
        self._server.stop()
        self._webhooks.stop()
        self._store.close()

    @property
    def url(self) -> str:
        """Where it listens: the `base_addresses["api"]` of a StripeClient."""
        return self._server.url

    @property
    def api_key(self) -> str:
        """The newest API key."""
        return self._keys.current

    def _answer(self, request: Request) -> Answer | None:
        if request.path.startswith(PREFIX):
            return answer_control(self, request)
        return self._answering.answer(request)


def serve(
    path: Path | None,
    *,
    port: int,
    stop: threading.Event,
    clock: Clock = system_clock,
    api_keys: Sequence[str] = (API_KEY,),
    webhook_url: str | None = None,
    webhook_secrets: Sequence[str] = (WEBHOOK_SECRET,),
    ready: Callable[[StripeSandbox], None] = lambda _: None,
) -> None:
    """Run a sandbox until `stop` is set, as a process of its own does; `ready` is called once it answers.

    Raises OSError where `port` is taken, sqlite3.Error where another process has `path`.
    """
    sandbox = StripeSandbox(
        path,
        clock=clock,
        port=port,
        api_keys=api_keys,
        webhook_url=webhook_url,
        webhook_secrets=webhook_secrets,
    )
    with sandbox:
        ready(sandbox)
        stop.wait()

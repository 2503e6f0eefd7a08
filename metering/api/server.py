"""Serving the API with uvicorn, until told to stop."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Final

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from metering.api.errors import InvalidField, invalid_request_response
from metering.runtime.settings import SettingsError

STOP_LIMIT_S: Final = 25
"""How long requests in hand may take once it is told to stop. What is cut off then is settled by the reconciler."""
KEEP_ALIVE_S: Final = 75
"""Longer than the proxies in front keep idle connections: it must never be us who close one that is just being used."""


HEADERS_LIMIT_S: Final = 20.0
"""How long a request's headers may take to come."""
LINGER_S: Final = 2.0
"""How long the rest of a body that was refused is still taken, and dropped: cut off at once, the answer might not arrive."""


class _Protocol(H11Protocol):
    """HTTP/1.1 whose own refusals have the contract's shape too, and which waits for nobody for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Somebody has connected, and should soon say what he wants."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Take in what came. What begins a request on a connection that was idle has to go on to its headers' end."""
        waited = self._headers_due
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            waited.cancel()
        elif waited.cancelled():
            self._await_headers()

    def on_response_complete(self) -> None:
        """It was answered. Who goes on to send what nobody reads is cut off."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.loop.call_later(LINGER_S, self._stop_taking, self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more."""
        self._headers_due.cancel()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADERS_LIMIT_S, self._hang_up)

    def _stop_taking(self, request: object) -> None:
        """Hang up if that request's body still comes: another one on the same connection must not be cut off for it."""
        if self.cycle is request and self.conn.their_state is h11.SEND_BODY:
            self._hang_up()

    def _hang_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what can't be read as a request, and hang up. `msg` is the server's own, of no use to anybody."""
        del msg
        refused = InvalidField("request", "must be HTTP/1.1, with at most 64 KiB of headers")
        answer = invalid_request_response(refused)
        headers = [(name, value) for name, value in answer.raw_headers] + [(b"connection", b"close")]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way already
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to whoever runs us."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        self._ready()


def bind(host: str, port: int) -> socket.socket:
    """A socket that doesn't listen yet; port 0 takes a free one. Raises SettingsError where it can't be had."""
    try:
        # With its protocol: on sockets of an unnamed one asyncio doesn't set TCP_NODELAY, and an answer's body would then wait
        # until the client has acknowledged its headers, for 40 ms.
        (family, _, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, socket.SOCK_STREAM, protocol)
        with contextlib.ExitStack() as or_close:
            or_close.enter_context(bound)
            bound.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # one that was just left may be taken at once
            bound.bind(address)
            or_close.pop_all()
            return bound
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"METERING_HTTP_PORT: {host}:{port} can't be served ({error}); see to METERING_HTTP_HOST, choose another port,"
            " or 0 for a free one."
        ) from error


def serve(
    app: FastAPI,
    bound: socket.socket,
    *,
    stop: threading.Event,
    ready: Callable[[], None] = lambda: None,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serve `app` until `stop` is set; `ready` is called once it answers. Requests in hand are finished first.

    What comes from one of `trusted_proxies` (addresses, or networks) comes from whom its `X-Forwarded-For` names.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_LIMIT_S,
    )
    asyncio.run(_serve(_Server(config, ready), bound, stop))


async def _serve(server: uvicorn.Server, bound: socket.socket, stop: threading.Event) -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()

    def pass_on() -> None:
        stop.wait()
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(told.set)

    threading.Thread(target=pass_on, name="stop of the API", daemon=True).start()
    serving = asyncio.create_task(server.serve([bound]))
    asking = asyncio.create_task(told.wait())
    await asyncio.wait([serving, asking], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    asking.cancel()
    await serving  # raises what it failed with

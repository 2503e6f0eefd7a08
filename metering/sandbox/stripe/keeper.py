"""The stand-in for Stripe of a data directory: where it keeps what it holds, and how others find it.

Its port, API key and webhook secret are chosen once, so that whoever talks to it may go on when it is started again.
"""

import os
import secrets
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

import msgspec

from metering.sandbox.servers.locks import opened, try_exclusive
from metering.sandbox.stripe.sandbox import StripeSandbox

DIRECTORY: Final = "stripe"
ADDRESS: Final = "address.json"
OBJECTS: Final = "objects.sqlite"
LOCK: Final = "lock"
POLL_EVERY_S: Final = 0.2
ANSWER_LIMIT_S: Final = 2.0
HOST: Final = "127.0.0.1"


class StandIn(msgspec.Struct, frozen=True):
    """How to talk to a stand-in, and what its webhooks are signed with."""

    port: int
    api_key: str
    webhook_secret: str

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"


class PortTakenError(Exception):
    """Another program has the stand-in's port. The text says what to do."""


def answering_stand_in(data_dir: Path) -> StandIn | None:
    """The stand-in of `data_dir`, if it runs and answers; never another's that happens to have its port."""
    try:
        found = _read(data_dir / DIRECTORY / ADDRESS)
    except FileNotFoundError:
        return None
    connection = HTTPConnection(HOST, found.port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("GET", "/v1/balance", headers={"Authorization": f"Bearer {found.api_key}"})
        return found if connection.getresponse().status == 200 else None  # noqa: PLR2004
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def keep_stand_in(data_dir: Path, *, webhook_url: str | None, stop: threading.Event) -> None:
    """Run the stand-in of `data_dir` until `stop` is set. If another process runs it, wait, and run it when that has ended.

    Raises PortTakenError.
    """
    directory = data_dir / DIRECTORY
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with opened(directory / LOCK) as lock:
        while not try_exclusive(lock):
            if stop.wait(POLL_EVERY_S):
                return
        found = _kept(directory / ADDRESS)
        sandbox = StripeSandbox(
            directory / OBJECTS,
            port=found.port,
            api_keys=(found.api_key,),
            webhook_url=webhook_url,
            webhook_secrets=(found.webhook_secret,),
        )
        with ExitStack() as stack:
            try:
                stack.enter_context(sandbox)
            except OSError as error:
                raise PortTakenError(
                    f"The stand-in for Stripe can't listen on its port {found.port} ({error.strerror}): end the program that has"
                    f" it, or remove {directory / ADDRESS}, and it chooses another."
                ) from error
            stop.wait()


def serve_stand_in(
    data_dir: Path,
    host: str,
    port: int,
    *,
    api_key: str,
    webhook_secrets: Sequence[str],
    webhook_url: str | None,
    stop: threading.Event,
) -> None:
    """Run a stand-in at an address that others know, with a key and webhook secrets that they know, until `stop` is set.

    What it holds is kept under `data_dir`. Raises PortTakenError.
    """
    directory = data_dir / DIRECTORY
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    sandbox = StripeSandbox(
        directory / OBJECTS,
        host=host,
        port=port,
        api_keys=(api_key,),
        webhook_url=webhook_url,
        webhook_secrets=webhook_secrets,
    )
    with ExitStack() as stack:
        try:
            stack.enter_context(sandbox)
        except OSError as error:
            raise PortTakenError(f"The stand-in can't listen on {host}:{port} ({error.strerror}).") from error
        stop.wait()


def _read(path: Path) -> StandIn:
    return msgspec.json.decode(path.read_bytes(), type=StandIn)


def _kept(path: Path) -> StandIn:
    """What the file says; chosen and written if it isn't there yet."""
    if path.exists():
        return _read(path)
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    made = StandIn(port, f"sk_test_sandbox_{secrets.token_hex(16)}", f"whsec_{secrets.token_hex(24)}")
    new = path.with_suffix(".new")  # then renamed: whoever looks for it finds all of it or nothing
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(made))
    new.replace(path)
    return made

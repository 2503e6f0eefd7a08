"""The servers that stand in for Stripe, as the contract's tests see them: each a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import stripe

from metering.sandbox.stripe.remote import control
from tests.sandbox.stripe.processes import SandboxProcess
from tests.waiting import wait_until

API_KEY: Final = "sk_test_sandbox"
START_LIMIT_S: Final = 30.0


@dataclass(frozen=True)
class StandIn:
    """A server, Stripe's own client for it, and what only a browser or a dashboard can do at Stripe."""

    name: str
    url: str
    client: stripe.StripeClient
    authenticate: Callable[[stripe.PaymentIntent, bool], None]
    """The customer of a PaymentIntent answers the challenge, or fails to."""
    card_only: Mapping[str, Any]
    """The parameters by which an intent takes cards only: endive's, or those of before."""
    way_back: Mapping[str, Any]
    """The parameters that every confirmation wants whose customer is there."""
    send_webhooks_to: Callable[[str | None, str], None]
    """Takes a URL (None: nowhere any more, if it can forget one) and a secret."""


def connect(url: str, api_key: str = API_KEY) -> stripe.StripeClient:
    """Stripe's client, that asks once."""
    return stripe.StripeClient(api_key, base_addresses={"api": url}, max_network_retries=0)


@contextmanager
def sandbox() -> Iterator[StandIn]:
    """Ours."""
    with SandboxProcess() as process:
        yield StandIn(
            "sandbox",
            process.url,
            connect(process.url),
            lambda intent, succeeds: control(
                process.url, "authenticate", payment_intent=intent.id, succeeds=succeeds
            ),
            {"allowed_payment_method_types": ["card"]},
            {"return_url": "https://example.com/back"},
            lambda url, secret: control(process.url, "set_webhook", url=url, secrets=[secret]),
        )


@contextmanager
def localstripe() -> Iterator[StandIn]:
    """The one by others, that is free of our mistakes and has its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "localstripe", "--port", str(port), "--from-scratch"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(port) or process.poll() is not None, limit_s=START_LIMIT_S)
        assert process.poll() is None, "localstripe did not start"
        yield StandIn(
            "localstripe",
            url,
            connect(url),
            lambda intent, succeeds: _post(
                f"{url}/v1/payment_intents/{intent.id}/_authenticate",
                {"client_secret": intent.client_secret, "success": succeeds, "key": "pk_test_browser"},
            ),
            {"payment_method_types": ["card"]},
            {},
            lambda target, secret: _post(
                f"{url}/_config/webhooks/contract", {"url": target or f"{url}/nowhere", "secret": secret}
            ),
        )
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        process.wait(START_LIMIT_S)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        answer.read()

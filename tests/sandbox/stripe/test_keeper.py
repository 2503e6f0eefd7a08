"""The stand-in for Stripe of a data directory: the same one for all, and after each restart."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from metering.console import stripe_access
from metering.console.errors import CommandError
from metering.console.stripe_access import StripeAccess, find_stripe
from metering.payments.stripe_api import connect_stripe
from metering.runtime.settings import Settings
from metering.sandbox.stripe.keeper import PortTakenError, StandIn, answering_stand_in, keep_stand_in
from tests.waiting import wait_until

LIMIT_S = 20.0
EMBEDDED = Settings()


@contextmanager
def kept(data_dir: Path, webhook_url: str | None = None) -> Iterator[StandIn]:
    """The stand-in of `data_dir`, run in a thread."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        keeping = threads.submit(keep_stand_in, data_dir, webhook_url=webhook_url, stop=stop)
        try:
            wait_until(lambda: answering_stand_in(data_dir) or keeping.done(), limit_s=LIMIT_S)
            found = answering_stand_in(data_dir)
            assert found is not None
            yield found
        finally:
            stop.set()
        keeping.result(timeout=LIMIT_S)


def access(data_dir: Path) -> StripeAccess:
    found = find_stripe(EMBEDDED, data_dir, threading.Event())
    assert found is not None
    return found


def test_it_is_found_by_its_directory_and_keeps_what_it_holds(data_dir: Path) -> None:
    with kept(data_dir) as first:
        found = access(data_dir)
        assert found == StripeAccess(first.api_key, (first.webhook_secret,), first.url, stand_in=True)
        stripe = connect_stripe(found.api_key, base_url=found.base_url)
        customer = stripe.create_customer(1, "Acme", key="one")
    assert answering_stand_in(data_dir) is None
    with kept(data_dir) as second:
        assert second == first
        assert stripe.create_customer(1, "Acme", key="one") == customer


def test_its_secrets_are_only_for_its_owner(data_dir: Path) -> None:
    with kept(data_dir) as found:
        assert stat.S_IMODE((data_dir / "stripe").stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "stripe" / "address.json").stat().st_mode) == 0o600
        assert found.api_key.startswith("sk_test_sandbox_")
        assert found.api_key not in repr(access(data_dir))
    with kept(data_dir.with_name("other")) as other:
        assert {other.api_key, other.webhook_secret}.isdisjoint({found.api_key, found.webhook_secret})


def test_a_second_keeper_waits_and_takes_over(data_dir: Path) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with kept(data_dir) as first:
            second = threads.submit(keep_stand_in, data_dir, webhook_url=None, stop=stop)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.5)
        try:
            wait_until(lambda: answering_stand_in(data_dir) == first, limit_s=LIMIT_S)
        finally:
            stop.set()
        second.result(timeout=LIMIT_S)


def test_after_a_kill_it_comes_back_where_it_was(data_dir: Path) -> None:
    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "metering", "stripe-sandbox"],
            env=os.environ | {"METERING_DATA_DIR": str(data_dir)},
            stderr=subprocess.DEVNULL,
        )

    process = start()
    try:
        wait_until(lambda: answering_stand_in(data_dir), limit_s=LIMIT_S)
        found = access(data_dir)
        customer = connect_stripe(found.api_key, base_url=found.base_url).create_customer(
            1, "Acme", key="one"
        )
        process.kill()
        process.wait()
        assert answering_stand_in(data_dir) is None
        process = start()
        wait_until(lambda: answering_stand_in(data_dir), limit_s=LIMIT_S)
        assert access(data_dir) == found
        again = connect_stripe(found.api_key, base_url=found.base_url).create_customer(1, "Acme", key="one")
        assert again == customer
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_port_that_another_program_has_is_told(data_dir: Path) -> None:
    with kept(data_dir) as found:
        pass
    with (
        socket.create_server(("127.0.0.1", found.port)),
        pytest.raises(PortTakenError, match=f"its port {found.port}"),
    ):
        keep_stand_in(data_dir, webhook_url=None, stop=threading.Event())


def test_another_directorys_stand_in_on_the_same_port_is_not_taken_for_it(data_dir: Path) -> None:
    other = data_dir.with_name("other")
    with kept(other) as found:
        (data_dir / "stripe").mkdir(parents=True)
        (data_dir / "stripe" / "address.json").write_text(
            f'{{"port":{found.port},"api_key":"sk_test_mine","webhook_secret":"whsec_mine"}}'
        )
        assert answering_stand_in(data_dir) is None


def test_whoever_finds_none_says_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe_access, "JOIN_LIMIT_S", 0.3)
    with pytest.raises(
        CommandError, match=r"No stand-in for Stripe runs under .*: start it with `metering up`"
    ):
        find_stripe(EMBEDDED, data_dir, threading.Event())
    stopped = threading.Event()
    stopped.set()
    assert find_stripe(EMBEDDED, data_dir, stopped) is None

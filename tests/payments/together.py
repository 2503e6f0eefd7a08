"""Doing things at the same moment, by real threads."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from db.attempts.attempts import Attempt
from metering.payments.stripe_api import StripeApi
from metering.rules.payments import Intent

Result = TypeVar("Result")


def together(*calls: Callable[[], Result]) -> Sequence[Result | Exception]:
    """Make all calls at once, each by a thread of its own; give what each returned or raised, in their order."""
    start = threading.Barrier(len(calls))

    def make(call: Callable[[], Result]) -> Result | Exception:
        start.wait()
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(make, calls))


@contextmanager
def answering_after(event: threading.Event) -> Iterator[None]:
    """Charges are made at once, and answered when `event` is set."""
    charge = StripeApi.charge

    def waits(api: StripeApi, attempt: Attempt, **options: Any) -> Intent:
        intent = charge(api, attempt, **options)
        assert event.wait(60)
        return intent

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StripeApi, "charge", waits)
        yield

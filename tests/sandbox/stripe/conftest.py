"""A sandbox of each test's own, in this process, with a clock that stands until it is moved."""

from collections.abc import Iterator

import pytest
import stripe

from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.payments.world import MovableClock
from tests.sandbox.stripe.receiver import Receiver, receiver
from tests.sandbox.stripe.shop import Shop


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def taker() -> Iterator[Receiver]:
    """A place that webhooks can be sent to."""
    with receiver() as started:
        yield started


@pytest.fixture
def sandbox(clock: MovableClock) -> Iterator[StripeSandbox]:
    with StripeSandbox(clock=clock) as started:
        yield started


@pytest.fixture
def client(sandbox: StripeSandbox) -> stripe.StripeClient:
    """Stripe's own client, that asks once."""
    return stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.url}, max_network_retries=0)


@pytest.fixture
def shop(sandbox: StripeSandbox, client: stripe.StripeClient) -> Shop:
    """A customer who pays."""
    return Shop(sandbox, client)

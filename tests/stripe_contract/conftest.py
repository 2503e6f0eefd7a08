"""Each test of the contract runs against each stand-in; what localstripe does otherwise is in differences.py."""

import socket
from collections.abc import Iterator

import pytest
import stripe

from tests.stripe_contract.differences import DIFFERENCES
from tests.stripe_contract.stand_ins import StandIn, localstripe, sandbox


@pytest.fixture(scope="session")
def _sandbox() -> Iterator[StandIn]:
    with sandbox() as started:
        yield started


@pytest.fixture(scope="session")
def _localstripe() -> Iterator[StandIn]:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("localstripe listens on an IPv6 socket, and this machine has none")
    with localstripe() as started:
        yield started


@pytest.fixture(params=["sandbox", "localstripe"])
def stand_in(request: pytest.FixtureRequest) -> StandIn:
    """One of them. A test that localstripe is known to fail has to fail: a difference that is none any more is an error."""
    if request.param == "localstripe" and request.function.__name__ in DIFFERENCES:
        reason = DIFFERENCES[request.function.__name__]
        failures = (AssertionError, AttributeError, KeyError, stripe.StripeError, pytest.fail.Exception)
        request.applymarker(pytest.mark.xfail(reason=f"localstripe {reason}", raises=failures, strict=True))
    started: StandIn = request.getfixturevalue(f"_{request.param}")
    return started


@pytest.fixture
def client(stand_in: StandIn) -> stripe.StripeClient:
    """Stripe's own client, talking to the stand-in."""
    return stand_in.client

"""Where a bank sends a customer back to: part of what an attempt's row fixes (docs/reference/settings.md)."""

from dataclasses import replace

import pytest

from metering.console.stripe_access import named_return_url
from metering.payments.errors import PaymentError, ProviderUnavailableError
from metering.payments.outcomes import TopUpMade
from metering.runtime.settings import SettingsError, read_settings
from metering.sandbox.stripe.answering import RequestMade
from metering.sandbox.stripe.faults import RequestFault
from tests.conftest import Database
from tests.db import execute_as
from tests.payments.world import RETURN_URL, World

OTHER_URL = "https://elsewhere.example/done"


def charges_asked(world: World) -> list[RequestMade]:
    return [each for each in world.sandbox.requests() if each.operation == "payment_intents.create"]


def test_a_top_up_says_where_its_customer_comes_back_to(world: World) -> None:
    """Without it Stripe refuses to confirm it (changelog 2023-08-16), and so does the stand-in."""
    world.save_card()
    done = world.top_up()
    assert isinstance(done.outcome, TopUpMade)
    assert done.outcome.status == "succeeded"
    (asked,) = charges_asked(world)
    assert asked.params["return_url"] == RETURN_URL
    assert asked.params["use_stripe_sdk"] == "true"
    assert [each.return_url for each in world.attempts()] == [RETURN_URL]
    world.assert_sound()


def test_the_setting_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for good in ("https://app.example.com/billing?from=bank", "myapp://paid", "http://127.0.0.1:8000/x"):
        monkeypatch.setenv("METERING_RETURN_URL", good)
        assert read_settings().return_url == good
    for bad in (
        "app.example.com",
        "/billing",
        "https://",
        "https://a b",
        "javascript:x",
        "https://é.example",
    ):
        monkeypatch.setenv("METERING_RETURN_URL", bad)
        with pytest.raises(SettingsError, match=r"^METERING_RETURN_URL must be an address .*https://"):
            read_settings()


def test_a_live_key_wants_it_and_in_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERING_DATABASE_URL", "postgresql://user:password@host/name")
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_x")
    monkeypatch.delenv("METERING_RETURN_URL", raising=False)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_x")
    assert named_return_url(read_settings()) is None
    for key in ("sk_live_x", "rk_live_x"):
        monkeypatch.setenv("STRIPE_API_KEY", key)
        with pytest.raises(SettingsError, match=r"^METERING_RETURN_URL is missing: set it to "):
            named_return_url(read_settings())
    monkeypatch.setenv("METERING_RETURN_URL", "http://app.example.com/billing")
    with pytest.raises(SettingsError, match=r"^METERING_RETURN_URL must not begin with http://"):
        named_return_url(read_settings())
    monkeypatch.setenv("METERING_RETURN_URL", OTHER_URL)
    assert named_return_url(read_settings()) == OTHER_URL


def test_a_reload_has_nobody_to_send_back(world: World) -> None:
    world.save_card()
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)
    world.work()
    (asked,) = charges_asked(world)
    assert {"off_session", "return_url", "use_stripe_sdk"} & asked.params.keys() == {"off_session"}
    assert [each.return_url for each in world.attempts()] == [None]
    assert world.balance() == 5_000


def test_a_repeat_is_the_same_request_though_the_setting_changed(world: World) -> None:
    """Another one under the same key would be refused as `idempotency_error`, and decide nothing."""
    world.save_card()
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=2)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.list", count=2)
    with pytest.raises(ProviderUnavailableError):
        world.top_up(key="a")
    restarted = replace(world, payments=replace(world.payments, return_url=OTHER_URL))
    world.clock.move(minutes=2)

    done = restarted.top_up(key="a")

    assert isinstance(done.outcome, TopUpMade)
    assert done.outcome.status == "succeeded"
    assert {each.params["return_url"] for each in charges_asked(world)} == {RETURN_URL}
    assert len({each.idempotency_key for each in charges_asked(world)}) == 1
    assert world.charged() == 1
    assert world.balance() == 2_000
    restarted.top_up(key="b")
    assert charges_asked(world)[-1].params["return_url"] == OTHER_URL
    world.assert_sound()


def test_a_row_from_before_the_column_repeats_as_it_was_sent(own_world: World, database: Database) -> None:
    """Stripe keeps what it answered to that; with a `return_url` it would be another request of the same key."""
    world = own_world
    world.save_card()
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.create", count=2)
    with pytest.raises(ProviderUnavailableError):
        world.top_up(key="a")
    execute_as(database.owner_url, "UPDATE payment_attempts SET return_url = NULL")
    world.clock.move(minutes=2)
    with pytest.raises(PaymentError):  # Stripe refuses it, as it did then
        world.top_up(key="a")
    assert "return_url" not in charges_asked(world)[-1].params
    assert world.charged() == 0

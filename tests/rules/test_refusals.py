"""What a refusal concerns, and how long it pauses reloads."""

from datetime import UTC, datetime, timedelta

import pytest

from metering.rules.refusals import Concern, pause_after_refusal, refusal_concerns
from metering.rules.reloads import LiftsWith

NOW = datetime(2026, 4, 20, 12, tzinfo=UTC)
INVALID = "invalid_request_error"

TABLE = [
    ("card_error", "card_declined", None, Concern.CUSTOMER),
    ("card_error", None, None, Concern.CUSTOMER),
    (INVALID, "resource_missing", "customer", Concern.CUSTOMER),
    (INVALID, "resource_missing", "payment_method", Concern.CUSTOMER),
    (INVALID, None, "payment_method", Concern.CUSTOMER),  # detached, or another customer's
    (INVALID, "payment_method_unexpected_state", None, Concern.CUSTOMER),
    (INVALID, "expired_card", "exp_year", Concern.CUSTOMER),
    (INVALID, "resource_missing", "payment_method_configuration", Concern.INSTALLATION),
    (INVALID, "parameter_missing", "payment_method", Concern.INSTALLATION),
    (INVALID, "parameter_unknown", "use_stripe_sdk", Concern.INSTALLATION),
    (INVALID, "parameter_invalid_empty", "customer", Concern.INSTALLATION),
    (INVALID, "account_invalid", None, Concern.INSTALLATION),
    (INVALID, "account_country_invalid_address", None, Concern.INSTALLATION),
    (INVALID, "testmode_charges_only", None, Concern.INSTALLATION),
    (INVALID, "livemode_mismatch", "payment_method", Concern.INSTALLATION),
    (INVALID, "url_invalid", "return_url", Concern.INSTALLATION),
    (INVALID, None, "return_url", Concern.INSTALLATION),
    (INVALID, None, None, Concern.INSTALLATION),  # "you must provide a `return_url`"
    (INVALID, "amount_too_small", "amount", Concern.INSTALLATION),
    (INVALID, "payment_method_unactivated", None, Concern.INSTALLATION),
    (INVALID, "a_code_of_next_year", None, Concern.INSTALLATION),
    ("api_error", None, None, Concern.INSTALLATION),
    (None, None, None, Concern.INSTALLATION),
]


@pytest.mark.parametrize(("type_", "code", "param", "concern"), TABLE)
def test_what_a_refusal_concerns(
    type_: str | None, code: str | None, param: str | None, concern: Concern
) -> None:
    assert refusal_concerns(type_=type_, code=code, param=param) is concern


def test_what_a_customer_can_mend_pauses_until_he_does() -> None:
    pause = pause_after_refusal("expired_card", Concern.CUSTOMER, held=None, card="c", now=NOW)
    assert (pause.lifts_with, pause.until, pause.card) == (LiftsWith.CHANGE, None, "c")


def test_what_he_cannot_mend_pauses_for_an_hour_then_for_a_day_each_time() -> None:
    held, hours = None, []
    for _ in range(4):
        held = pause_after_refusal("account_invalid", Concern.INSTALLATION, held=held, card="c", now=NOW)
        assert (held.lifts_with, held.card) == (LiftsWith.TIME, "c")
        assert held.until is not None
        hours.append((held.until - NOW) / timedelta(hours=1))
    assert hours == [1, 24, 24, 24]

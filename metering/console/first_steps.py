"""What `metering up` proposes to try first: from a customer's card to a call that is billed."""

from datetime import datetime
from typing import Final

from metering.console.stripe_access import StripeAccess, is_live
from metering.rules.times import format_time

FIRST_ORG_ID: Final = "1001"
"""`demo`, in the same data directory, takes ids from 1 on."""
STRIPE_URL: Final = "https://api.stripe.com"

# For a POSIX shell, and nothing but curl and sed.
_BEGIN: Final = """
metering org create Acme --id @ORG@
metering tier set bolt 0.08
"""
_TOP_UP: Final = """
KEY=$(metering key create @ORG@ --json | sed -E 's/.*"api_key": *"([^"]+)".*/\\1/')
ask() { curl -sS -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' "$@"; }
SETUP=$(ask -X POST @URL@/v1/billing/setup-intent | sed -E 's/.*"setup_intent_id": *"([^"]+)".*/\\1/')
CARD=$(@BROWSER@)
ask @URL@/v1/billing/default-payment-method -d '{"payment_method_id":"'$CARD'"}'
ask @URL@/v1/billing/top-up -d '{"amount_cents":1000}' -H 'Idempotency-Key: first'
"""
_STAND_INS_BROWSER: Final = (
    """curl -sS @STRIPE@/_sandbox/confirm_setup -d '{"setup_intent":"'$SETUP'"}' | cut -d '"' -f 4"""
)
_TEST_MODES_BROWSER: Final = (
    """curl -sS @STRIPE@/v1/setup_intents/$SETUP/confirm -u "$STRIPE_API_KEY:" -d payment_method=pm_card_visa"""
    """ | sed -nE 's/.*"payment_method": *"([^"]+)".*/\\1/p'"""
)
_ADJUST: Final = """
metering adjust @ORG@ --cents 1000 --reason "First credit" --key first
"""
_CALL: Final = """
echo '@EVENT@' | metering push -
metering status
"""
_TRANSACTIONS: Final = """
ask @URL@/v1/billing/transactions
"""


def first_steps(now: datetime, url: str, access: StripeAccess) -> list[str]:
    """Shell commands that give an org money and bill a first call, ended at `now`; `url` is the API's.

    With a live key nobody's card is charged to try things: the money is an operator's correction.
    """
    event = (
        f'{{"call_id":1,"org_id":{FIRST_ORG_ID},"tier":"bolt","direction":"outbound",'
        f'"duration_seconds":75,"ended_at":"{format_time(now)}"}}'
    )
    live = is_live(access.api_key)
    text = _BEGIN + (_ADJUST if live else _TOP_UP) + _CALL + ("" if live else _TRANSACTIONS)
    text = text.replace("@BROWSER@", _STAND_INS_BROWSER if access.stand_in else _TEST_MODES_BROWSER)
    for mark, value in (
        ("@ORG@", FIRST_ORG_ID),
        ("@URL@", url),
        ("@STRIPE@", access.base_url or STRIPE_URL),
        ("@EVENT@", event),
    ):
        text = text.replace(mark, value)
    return [line for line in text.splitlines() if line]

"""docs/reference/http-api.md says what is so."""

import re
from typing import Final

from metering.api.bodies import MAX_BODY_BYTES
from metering.api.errors import INTERNAL_ERROR, TABLE
from metering.api.thread_pools import MAX_WAITING_PER_ORG, PROVIDER_THREADS_PER_ORG, THREADS_PER_ORG
from metering.rules.lookup_schedule import TOP_UP_WINDOW
from tests.docs.pages import page

PAGE: Final = page("reference/http-api.md")
OTHERS: Final = {
    (402, "card_declined"),
    (402, "authentication_required"),
    (402, "balance_exhausted"),
    (402, "insufficient_balance"),
    (403, "org_suspended"),
    (409, "call_ended"),
    (429, "too_many_calls"),
    (405, "method_not_allowed"),
    (503, "queue_full"),
    (500, INTERNAL_ERROR[1]),
}


def test_every_error_that_customers_may_meet_is_there() -> None:
    rows = re.findall(r"^\| ([0-9]+) \| ([a-z_`, ]+) \|", PAGE, re.MULTILINE)
    named = {(int(status), code) for status, codes in rows for code in re.findall("[a-z_]+", codes)}
    known = {(int(status), code) for status, code in TABLE.values()} | OTHERS
    assert named == known - {(400, "invalid_signature")}  # Stripe's alone


def test_numbers_are_the_programs_own() -> None:
    assert f"longer than {MAX_BODY_BYTES // 1024} KiB" in PAGE
    assert f"At most {PROVIDER_THREADS_PER_ORG} of its requests ask Stripe" in PAGE
    assert f"{THREADS_PER_ORG} list transactions, and {THREADS_PER_ORG}\nread or change" in PAGE
    assert f"Beyond {MAX_WAITING_PER_ORG} that wait" in PAGE
    assert f"more than {MAX_WAITING_PER_ORG} requests" in PAGE
    assert f"for {int(TOP_UP_WINDOW.total_seconds()) // 3600} hours" in PAGE

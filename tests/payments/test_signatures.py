"""Whose webhooks are believed: those signed by a secret of ours, not long ago."""

import json
from typing import Any

import pytest

from metering.payments.errors import SignatureError
from metering.payments.webhooks import receive
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from metering.sandbox.stripe.signatures import signature_header
from tests.payments.world import START, World

NOW = int(START.timestamp())
EVENT: dict[str, Any] = {
    "id": "evt_1",
    "object": "event",
    "type": "payment_intent.canceled",
    "created": NOW,
    "livemode": False,
    "data": {"object": {"id": None, "object": "payment_intent"}},
}
BODY = json.dumps(EVENT).encode()


def signed(body: bytes = BODY, secret: str = WEBHOOK_SECRET, at: int = NOW) -> str:
    return signature_header(body, [secret], at)


def take(world: World, header: str | None, body: bytes = BODY, *secrets: str) -> str:
    return receive(world.payments, body, header, secrets or (WEBHOOK_SECRET,))


def refuse(world: World, header: str | None, body: bytes = BODY) -> None:
    with pytest.raises(SignatureError):
        take(world, header, body)
    assert world.rows("SELECT * FROM stripe_events") == [], (header, body[:100])


def test_what_is_signed_with_our_secret_is_believed(world: World) -> None:
    assert take(world, signed()) == "unknown_object"


def test_a_signature_may_be_five_minutes_away_in_either_direction_and_no_more(world: World) -> None:
    for age_s in (-301, 301, NOW):
        refuse(world, signed(at=NOW - age_s))
    for age_s in (-300, 300):
        assert take(world, signed(at=NOW - age_s)) in {"unknown_object", "known"}


def test_any_other_header_is_refused(world: World) -> None:
    for header in (
        None,
        "",
        "nonsense",
        "t=",
        f"t={NOW}",
        f"t={NOW},v1=",
        f"t={NOW},v1={'0' * 64}",
        f"t={NOW},v1=\xe9",
        f"t={NOW},v1=\u0661",
        f"t={NOW},v0={signed().partition('v1=')[2]}",
        signed(secret="whsec_of_somebody_else"),  # noqa: S106
        signed().partition(",")[2],
        f"t=x,{signed()}",
        f"t={'9' * 400},v1={'0' * 64}",
        "t=-1,v1=00",
        "\x00",
    ):
        refuse(world, header)


def test_an_old_signature_is_not_made_new_by_a_second_time_beside_it(world: World) -> None:
    """The SDK takes the first time, however it is written; whoever looks at another is deceived."""
    old = NOW - 9_999
    signature = signed(at=old).partition(",")[2]
    for time in (f"{old}", f" {old}", f"+{old}", f"0{old}", f"{old // 1_000}_{old % 1_000:03}"):
        refuse(world, f"t={time},t={NOW},{signature}")
        refuse(world, f"t={NOW},t={time},{signature}")
        refuse(world, f"t={time}, t={NOW},{signature}")


def test_while_the_secret_is_changed_both_count_and_then_only_the_new_one(world: World) -> None:
    old, new = "whsec_old", "whsec_new"
    for header in (signed(secret=old), signed(secret=new), signature_header(BODY, [old, new], NOW)):
        assert take(world, header, BODY, old, new) in {"unknown_object", "known"}
    with pytest.raises(SignatureError):
        take(world, signed(secret=old), BODY, new)
    assert take(world, signature_header(BODY, [old, new], NOW), BODY, new) == "known"


def test_the_raw_body_is_what_is_signed(world: World) -> None:
    with pytest.raises(SignatureError):
        take(world, signed(), json.dumps(EVENT, indent=1).encode())
    with pytest.raises(SignatureError):
        take(world, signed(), BODY + b" ")


def test_a_signed_body_that_is_no_event_is_refused(world: World) -> None:
    """Whoever has the secret may still be broken."""
    for body in (
        b"",
        b"\xff\xfe",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"[" * 100_000,
        b"{}",
        json.dumps({**EVENT, "created": "yesterday"}).encode(),
        json.dumps({**EVENT, "created": 10**30}).encode(),
        json.dumps({**EVENT, "data": None}).encode(),
        json.dumps({**EVENT, "data": []}).encode(),
        json.dumps({**EVENT, "id": 7}).encode(),
        json.dumps({**EVENT, "id": None}).encode(),
        json.dumps({**EVENT, "type": ["refund.created"]}).encode(),
    ):
        refuse(world, signed(body), body)

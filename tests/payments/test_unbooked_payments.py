"""Payments that no attempt of ours made: listed, told by the audit, and credited by an operator, once."""

from typing import Any

import pytest

from db.audit.full import run_audit
from db.models.errors import OrgError
from db.operators.log import Actor
from db.payments.stripe_customers import CustomerTakenError, find_org_of_customer
from db.postgres.engine import transaction
from metering.payments.audit import INTENT_HAS_ATTEMPT, audit_against_stripe
from metering.payments.metrics import METADATA_DIFFERS
from metering.payments.unbooked import Booked, BookingError, Unbooked, book_payment, find_unbooked
from tests.conftest import Database
from tests.payments.test_restored import Backup, recover
from tests.payments.together import together
from tests.payments.world import World

REASON = "paid by invoice 17"


def customer(world: World, org_id: int = 1) -> str:
    found = world.account(org_id).stripe_customer_id
    assert found is not None
    return found


def somebody(world: World) -> str:
    """A customer that somebody made in the dashboard."""
    return world.stripe.v1.customers.create({"name": "Somebody"}).id


def pay(world: World, who: str, cents: int = 2_500, **others: Any) -> str:
    intent: str = world.sandbox.pay_in_dashboard(who, cents, **others)["id"]
    return intent


def unbooked(world: World) -> list[tuple[str, int | None, Unbooked]]:
    return [
        (each.payment_intent_id, each.org_id, each.reason)
        for each in find_unbooked(world.engine, world.payments.stripe)
    ]


def book(world: World, intent: str, org_id: int = 1, reason: str = REASON) -> Booked:
    return book_payment(world.payments, org_id, intent, reason, Actor("maria", "maria"))


def hear_all(world: World) -> None:
    world.deliver(*world.events())
    world.clock.move(minutes=31)
    world.reconcile()


def test_a_payment_made_by_hand_is_credited_once_for_ever(world: World) -> None:
    world.save_card()
    intent = pay(world, customer(world))
    hear_all(world)
    assert world.balance() == 0
    assert unbooked(world) == [(intent, 1, Unbooked.UNKNOWN_INTENT)]
    before = METADATA_DIFFERS._value.get()

    first = book(world, intent)
    assert (first.booked, first.amount_cents, first.balance_after_cents) == (True, 2_500, 2_500)
    again = book(world, intent, reason="another")
    hear_all(world)

    assert (again.booked, again.transaction_id) == (False, first.transaction_id)
    assert world.balance() == world.held_cents() == 2_500
    (credit,) = world.rows("SELECT description, source_key FROM transactions WHERE kind = 'credit'")
    assert tuple(credit) == (REASON, intent)
    assert unbooked(world) == []
    assert METADATA_DIFFERS._value.get() == before
    world.assert_sound()


def test_of_many_who_book_at_once_one_does(world: World) -> None:
    world.save_card()
    intent = pay(world, customer(world))
    done = together(*[lambda: book(world, intent)] * 6)
    assert sorted(each.booked for each in done if isinstance(each, Booked)) == [False] * 5 + [True]
    assert world.balance() == 2_500
    world.assert_sound()


def test_what_went_back_before_and_after_is_taken_from_it(world: World) -> None:
    world.save_card()
    intent = pay(world, customer(world))
    world.sandbox.refund(intent, amount_cents=500)
    book(world, intent)
    assert world.balance() == 2_000
    world.sandbox.refund(intent, amount_cents=700)
    hear_all(world)
    assert world.balance() == world.held_cents() == 1_300
    world.assert_sound()


def test_another_orgs_customer_is_refused_and_nothing_changes(world: World) -> None:
    world.save_card()
    world.make_org(2)
    intent = pay(world, customer(world))
    with pytest.raises(BookingError, match="org 1"):
        book(world, intent, org_id=2)
    assert (world.balance(), world.balance(2)) == (0, 0)


def test_a_customer_that_no_org_has_becomes_the_orgs_with_it(world: World) -> None:
    who = somebody(world)
    intent, later = pay(world, who), pay(world, who, 900)
    world.make_org(2)
    assert unbooked(world) == [
        (later, None, Unbooked.UNKNOWN_CUSTOMER),
        (intent, None, Unbooked.UNKNOWN_CUSTOMER),
    ]

    done = book(world, intent)

    assert (done.booked, done.customer_claimed) == (True, True)
    with transaction(world.engine) as connection:
        assert find_org_of_customer(connection, who) == 1
    assert unbooked(world) == [(later, 1, Unbooked.UNKNOWN_INTENT)]
    with pytest.raises(BookingError, match="org 1"):
        book(world, later, org_id=2)
    assert world.balance() == 2_500


def test_of_two_orgs_that_book_a_strangers_payment_at_once_one_gets_it(world: World) -> None:
    world.make_org(2)
    intent = pay(world, somebody(world))
    done = together(lambda: book(world, intent, 1), lambda: book(world, intent, 2))
    assert len([each for each in done if isinstance(each, Booked)]) == 1
    assert [each for each in done if not isinstance(each, Booked | BookingError | CustomerTakenError)] == []
    assert sorted([world.balance(), world.balance(2)]) == [0, 2_500]


def test_a_payment_without_a_customer_is_refused(world: World) -> None:
    made = world.stripe.v1.payment_intents.create(
        {
            "amount": 2_500,
            "currency": "usd",
            "payment_method": "pm_card_visa",
            "confirm": True,
            "off_session": True,
        }
    )
    assert unbooked(world) == [(made.id, None, Unbooked.NO_CUSTOMER)]
    with pytest.raises(BookingError, match="no customer"):
        book(world, made.id)


def test_what_cannot_be_booked_is_refused_with_the_reason_and_claims_nobody(world: World) -> None:
    who = somebody(world)
    for intent, why in (
        (pay(world, who, currency="eur"), "eur"),
        (open_intent(world, who), "requires_"),
        ("pi_nothing", "pi_nothing"),
    ):
        with pytest.raises(BookingError, match=why):
            book(world, intent)
    with pytest.raises(OrgError, match="99"):
        book(world, pay(world, who), org_id=99)
    assert world.rows("SELECT * FROM stripe_customers") == []
    assert world.balance() == 0


def open_intent(world: World, who: str) -> str:
    return world.stripe.v1.payment_intents.create({"amount": 700, "currency": "usd", "customer": who}).id


def test_the_audit_says_what_is_unbooked_and_with_what_it_is_booked(world: World) -> None:
    world.save_card()
    intent = pay(world, customer(world))
    stranger = pay(world, somebody(world), 700)
    world.clock.move(minutes=20)

    found = audit_against_stripe(world.engine, world.payments.stripe)

    (violation,) = found.violations
    assert (violation.invariant, violation.org_id) == (INTENT_HAS_ATTEMPT, 1)
    assert f"metering payment book 1 {intent} --reason" in violation.detail
    assert "2500 cents" in violation.detail
    assert found.strangers == [stranger]


def test_a_charge_on_its_way_is_not_listed(world: World) -> None:
    world.save_card()
    world.sandbox.slow_card(world.account().default_payment_method_id or "")
    world.top_up()
    world.sandbox.finish_processing(world.intents()[0]["id"])
    assert unbooked(world) == []
    world.clock.move(minutes=16)
    assert [reason for _, _, reason in unbooked(world)] == [Unbooked.NOT_SETTLED]
    hear_all(world)
    assert unbooked(world) == []


def test_a_forgotten_customer_who_can_be_proved_is_his_orgs_and_not_who_asks_first(
    own_world: World, database: Database
) -> None:
    own_world.make_org(2)
    backup = Backup(database)
    own_world.save_card()
    who = customer(own_world)
    intent = pay(own_world, who)
    backup.restore()

    with pytest.raises(BookingError, match="org 1"):
        book(own_world, intent, org_id=2)
    assert book(own_world, intent, org_id=1).booked
    recover(own_world)
    assert own_world.balance() == 2_500
    report = run_audit(own_world.engine)
    assert report.passed, report.violations


def test_the_operators_user_may_do_it(own_world: World) -> None:
    """`metering payment` runs as metering_app."""
    assert own_world.rows("SELECT current_user AS me")[0].me == "metering_app"
    intent = pay(own_world, somebody(own_world))
    assert book(own_world, intent).booked

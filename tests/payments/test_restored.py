"""A database that was restored to an earlier time: what it has forgotten Stripe still knows."""

from collections.abc import Sequence
from contextlib import closing
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from db.audit.full import run_audit
from metering.payments.audit import audit_against_stripe
from metering.payments.outcomes import TopUpMade
from metering.rules.payments import AttemptStatus
from tests.conftest import Database
from tests.payments.world import World

FORGOTTEN = (
    "transactions",
    "payment_attempts",
    "idempotency_keys",
    "stripe_events",
    "stripe_cursors",
    "payment_methods",
    "reload_states",
    "stripe_customers",
)


def as_admin(database: Database, *statements: str) -> None:
    """Do what no role of the product may: damage."""
    url = make_url(database.admin_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(url, autocommit=True)) as admin:
        admin.execute("SET session_replication_role = replica")  # so that no trigger stands in the way
        for statement in statements:
            admin.execute(statement.encode())


class Backup:
    """The tables as they are now, to be brought back later."""

    def __init__(self, database: Database, tables: Sequence[str] = (*FORGOTTEN, "accounts")) -> None:
        self._database = database
        self._tables = tables
        as_admin(database, *(f"CREATE TABLE backup_{table} AS TABLE {table}" for table in tables))

    def restore(self) -> None:
        as_admin(
            self._database,
            *(f"TRUNCATE {table}" for table in self._tables),
            *(
                f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM backup_{table}"  # noqa: S608
                for table in self._tables
            ),
        )


@pytest.fixture
def world(own_world: World) -> World:
    return own_world


def recover(world: World) -> None:
    """Let the reconciler find what there is."""
    world.clock.move(minutes=2)
    world.reconcile()
    world.mend_gates()


def topped_up(world: World, amount_cents: int = 2_000) -> str:
    outcome = world.top_up(amount_cents).outcome
    assert isinstance(outcome, TopUpMade)
    return outcome.payment_intent_id


def test_charges_and_refunds_since_the_backup_are_booked_again(world: World, database: Database) -> None:
    world.save_card()
    topped_up(world)
    world.read_events()
    backup = Backup(database)
    world.clock.move(minutes=5)
    second = topped_up(world, 3_000)
    world.sandbox.refund(second, amount_cents=500)
    world.clock.move(minutes=1)
    world.read_events()
    assert world.balance() == 4_500

    backup.restore()
    assert world.balance() == 2_000
    recover(world)

    assert world.balance() == world.held_cents() == 4_500
    lost = world.attempts()[-1]
    assert (lost.payment_intent_id, lost.recovered, lost.status) == (second, True, AttemptStatus.SUCCEEDED)
    world.assert_sound()


def test_a_customer_that_was_forgotten_is_taken_over_from_his_charges(
    world: World, database: Database
) -> None:
    world.read_events()
    backup = Backup(database)
    method = world.save_card()
    customer = world.account().stripe_customer_id
    topped_up(world)
    world.clock.move(days=3)  # his key is forgotten too: asked for again, he would be another one

    backup.restore()
    recover(world)

    assert world.account().stripe_customer_id == customer
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()
    assert not world.account().has_payment_method
    assert world.save_card() != method
    topped_up(world)
    assert world.balance() == world.held_cents() == 4_000


def test_a_challenge_that_was_forgotten_is_credited_when_it_is_met(world: World, database: Database) -> None:
    world.save_card("pm_card_threeDSecure2Required")
    world.read_events()
    backup = Backup(database)
    intent = topped_up(world)
    backup.restore()
    recover(world)
    (attempt,) = world.attempts()
    assert (attempt.status, attempt.recovered) == (AttemptStatus.OPEN, True)

    world.sandbox.authenticate(intent)
    recover(world)
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_challenge_that_was_forgotten_is_cancelled_when_its_day_is_over(
    world: World, database: Database
) -> None:
    world.save_card("pm_card_threeDSecure2Required")
    world.read_events()
    backup = Backup(database)
    topped_up(world)
    backup.restore()
    world.clock.move(hours=25)
    recover(world)
    recover(world)
    assert [each["status"] for each in world.intents()] == ["canceled"]
    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED]
    world.assert_sound()


def test_a_challenge_that_was_forgotten_and_stripped_of_its_mark_is_mended_as_the_audit_says(
    world: World, database: Database
) -> None:
    """Its event names nobody when it is read. Nothing is taken, so nothing is lost; but it must not stay for ever."""
    world.save_card("pm_card_threeDSecure2Required")
    world.read_events()
    backup = Backup(database)
    intent = topped_up(world)
    marks = world.intents()[0]["metadata"]
    world.stripe.v1.payment_intents.update(intent, {"metadata": dict.fromkeys(marks, "")})
    backup.restore()
    recover(world)
    world.stripe.v1.payment_intents.update(intent, {"metadata": marks})
    world.clock.move(hours=1)

    (violation,) = audit_against_stripe(world.engine, world.payments.stripe).violations
    assert violation.detail.endswith(
        "has no attempt; it is of org 1's customer. Nothing is taken yet; cancel it at Stripe"
    )
    world.stripe.v1.payment_intents.cancel(intent)
    recover(world)

    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED]
    world.assert_sound()


def test_an_attempt_that_the_backup_holds_as_open_gets_the_end_that_it_had(
    world: World, database: Database
) -> None:
    world.save_card("pm_card_threeDSecure2Required")
    intent = topped_up(world)
    world.read_events()
    backup = Backup(database)
    world.sandbox.authenticate(intent)
    world.deliver(*world.events("payment_intent.succeeded"))
    world.sandbox.refund(intent, amount_cents=100)
    world.deliver(*world.events("charge.refunded"))
    backup.restore()
    recover(world)
    assert world.balance() == world.held_cents() == 1_900
    world.assert_sound()


@pytest.mark.parametrize("key", [None, "made-by-hand"])
def test_a_second_payment_of_one_attempt_is_the_orgs_money_too(world: World, key: str | None) -> None:
    """Somebody has copied our mark, at Stripe or with another program: it was taken from the org's customer."""
    method = world.save_card()
    topped_up(world)
    (first,) = world.intents()
    world.stripe.v1.payment_intents.create(
        {
            "amount": 2_000,
            "currency": "usd",
            "customer": first["customer"],
            "payment_method": method,
            "confirm": True,
            "metadata": first["metadata"],
            "allowed_payment_method_types": ["card"],
            "return_url": "https://example.com",
        },
        {"idempotency_key": key} if key else {},
    )

    recover(world)
    recover(world)

    assert world.balance() == world.held_cents() == 4_000
    assert [each.recovered for each in world.attempts()].count(True) == 1
    assert run_audit(world.engine).passed


def lose_credit(world: World, database: Database) -> None:
    as_admin(
        database,
        "DELETE FROM transactions WHERE amount_cents = 2000",
        "UPDATE accounts SET balance_cents = balance_cents - 2000",
    )


def lose_attempt(world: World, database: Database) -> None:
    as_admin(database, "DELETE FROM payment_attempts WHERE amount_cents = 2000")


def change_credit(world: World, database: Database) -> None:
    as_admin(database, "UPDATE transactions SET amount_cents = 2001 WHERE amount_cents = 2000")


def invent_attempt(world: World, database: Database) -> None:
    as_admin(
        database,
        f"""INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at,
            status, payment_intent_id, look_at, finished_at)
        VALUES (1, '{uuid4()}', 'top_up', 700, 'c', 'p', '2026-04-20', 'succeeded', 'pi_invented', '2026-04-20',
            '2026-04-20')""",  # noqa: S608
    )


def refund_unheard(world: World, database: Database) -> None:
    world.sandbox.refund(world.intents()[0]["id"], amount_cents=10)


def dispute_unheard(world: World, database: Database) -> None:
    world.sandbox.open_dispute(world.intents()[0]["id"])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lose_credit, {"stripe_charge_credited"}),
        (lose_attempt, {"stripe_charge_has_attempt"}),
        (change_credit, {"stripe_charge_credited"}),
        (invent_attempt, {"attempt_charged_at_stripe"}),
        (refund_unheard, {"stripe_refund_booked"}),
        (dispute_unheard, {"stripe_refund_booked"}),
    ],
)
def test_the_audit_finds_each_difference_to_stripe_and_nothing_else(
    world: World, database: Database, damage: object, found: set[str]
) -> None:
    world.save_card()
    topped_up(world)
    topped_up(world, 3_000)
    world.clock.move(hours=1)
    assert audit_against_stripe(world.engine, world.payments.stripe).violations == []

    assert callable(damage)
    damage(world, database)

    report = audit_against_stripe(world.engine, world.payments.stripe)
    assert {each.invariant for each in report.violations} == found
    assert len(report.violations) == 1
    assert all(each.detail and each.org_id == 1 for each in report.violations)


def test_a_charge_on_its_way_is_no_difference_yet(world: World) -> None:
    world.save_card("pm_card_threeDSecure2Required")
    world.sandbox.authenticate(topped_up(world))  # and its webhook is still to come
    report = audit_against_stripe(world.engine, world.payments.stripe)
    assert (report.violations, report.settling, report.charges) == ([], 1, 1)

"""Whose a payment is, its customer says: whoever edits metadata at Stripe moves no money.

See docs/reference/money-rules.md#credits.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import structlog.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.audit.full import run_audit
from metering.payments.audit import CHARGE_ELSEWHERE, METADATA_MATCHES, audit_against_stripe
from metering.payments.metrics import METADATA_DIFFERS
from metering.payments.outcomes import TopUpMade
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.faults import RequestFault
from tests.conftest import Database
from tests.payments.crashing import crashing_at
from tests.payments.reload_world import Site
from tests.payments.test_restored import Backup, as_admin, recover
from tests.payments.world import World


def edit(world: World, intent_id: str, **metadata: str) -> None:
    """Somebody edits a PaymentIntent's metadata in the dashboard; empty text removes a key."""
    world.stripe.v1.payment_intents.update(intent_id, {"metadata": metadata})


def hear_all(world: World) -> None:
    """Every event there ever was, and what Stripe holds now, by every way in which we look."""
    world.deliver(*world.events())
    world.reconcile()


def pay(world: World, amount_cents: int = 2_000, *, org_id: int = 1) -> str:
    outcome = world.top_up(amount_cents, org_id=org_id).outcome
    assert isinstance(outcome, TopUpMade)
    return outcome.payment_intent_id


def credited(world: World) -> list[tuple[int, str, int]]:
    """Org, PaymentIntent and cents of each credit."""
    rows = world.rows(
        "SELECT org_id, source_key, amount_cents FROM transactions WHERE kind = 'credit' ORDER BY id"
    )
    return [tuple(row) for row in rows]


def violations(world: World) -> list[tuple[str, int | None]]:
    found = audit_against_stripe(world.engine, world.payments.stripe).violations
    return [(each.invariant, each.org_id) for each in found]


@pytest.mark.parametrize("other_has_a_customer", [False, True])
@pytest.mark.parametrize(
    "return_money",
    [
        lambda world, intent: world.sandbox.refund(intent, amount_cents=500),
        lambda world, intent: world.sandbox.open_dispute(intent, amount_cents=500),
    ],
    ids=["refund", "dispute"],
)
def test_what_went_back_belongs_to_the_customers_org_whatever_the_metadata_say(
    world: World, return_money: Callable[[World, str], Any], other_has_a_customer: bool
) -> None:
    world.save_card()
    world.make_org(2)
    if other_has_a_customer:
        world.save_card(org_id=2)
    intent = pay(world)
    before = METADATA_DIFFERS._value.get()

    edit(world, intent, org_id="2")
    return_money(world, intent)
    with structlog.testing.capture_logs() as logs:
        hear_all(world)

    assert credited(world) == [(1, intent, 2_000)]
    assert (world.balance(), world.balance(2)) == (1_500, 0)
    assert (
        not other_has_a_customer or world.account(2).stripe_customer_id != world.account().stripe_customer_id
    )
    assert world.attempts(2) == []
    assert METADATA_DIFFERS._value.get() > before
    assert any(
        each["event"].startswith("the metadata of a payment") and each["named_org"] == 2 for each in logs
    )
    assert violations(world) == [(METADATA_MATCHES, 1)]
    edit(world, intent, org_id="1")
    world.assert_sound()


def test_a_payment_that_nobody_heard_of_yet_goes_to_its_customers_org(world: World) -> None:
    """The answer is lost, the metadata edited, and the webhook brings the charge as it is named now."""
    world.save_card()
    world.make_org(2)
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND, 1):
        world.top_up()
    (intent,) = world.intents()
    edit(world, intent["id"], org_id="2")
    (succeeded,) = world.events("payment_intent.succeeded")
    now = world.stripe.v1.payment_intents.retrieve(intent["id"]).to_dict()

    world.deliver({**succeeded, "data": {"object": now}})

    assert credited(world) == [(1, intent["id"], 2_000)]
    assert [each.status.value for each in world.attempts()] == ["succeeded"]
    world.clock.move(minutes=2)
    hear_all(world)
    assert credited(world) == [(1, intent["id"], 2_000)]


@pytest.mark.parametrize("named", ["a new attempt", "another attempt", "none"])
def test_the_attempts_own_key_knows_better_than_metadata(world: World, named: str) -> None:
    """`attempt_id` edited before we hear of the charge: credited once, and the attempt comes to its end."""
    world.save_card()
    other = world.top_up(3_000)
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND, 1):
        world.top_up()
    intent = world.intents()[-1]["id"]
    names = {"a new attempt": str(uuid4()), "another attempt": str(other.attempt_id), "none": ""}
    edit(world, intent, attempt_id=names[named])
    (succeeded,) = (
        each for each in world.events("payment_intent.succeeded") if each["data"]["object"]["id"] == intent
    )
    now = world.stripe.v1.payment_intents.retrieve(intent).to_dict()
    world.deliver({**succeeded, "data": {"object": now}})
    world.clock.move(minutes=2)

    hear_all(world)

    assert [each for each in credited(world) if each[1] == intent] == [(1, intent, 2_000)]
    assert world.balance() == world.held_cents() == 5_000
    assert [
        each.status.value for each in world.attempts() if each.amount_cents == 2_000 and not each.recovered
    ] == ["succeeded"]
    assert not [each for each in world.attempts() if each.open]
    assert violations(world) == [(METADATA_MATCHES, 1)]


def step(world: World, name: str, intent: dict[str, Any], edits: dict[str, str]) -> None:
    """Do one of the steps above, about `intent` where it is about one."""
    if name == "edit":
        attempts = world.attempts()
        new = {"new": str(uuid4()), "another": world.intents()[0]["metadata"].get("attempt_id", "")}
        new |= {f"attempt {number}": str(attempts[number % len(attempts)].id) for number in range(6)}
        edit(world, intent["id"], **{key: new.get(value, value) for key, value in edits.items()})
        return
    with suppress(StripeError):  # a dispute of what is disputed, a refund of that
        OTHER_STEPS[name](world, intent)


def pay_unheard(world: World, card: str | None = None) -> None:
    """The answer is lost, with the process."""
    method = (
        None if card is None else world.sandbox.save_card(world.account().stripe_customer_id or "", card=card)
    )
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND, 1):
        world.top_up(1_000, method=method)
    world.clock.move(seconds=61)


def reconcile(world: World) -> None:
    world.clock.move(seconds=61)
    world.reconcile()


def hear_as_it_is_now(world: World) -> None:
    for event in world.events("payment_intent.succeeded"):
        now = world.stripe.v1.payment_intents.retrieve(event["data"]["object"]["id"]).to_dict()
        world.deliver({**event, "id": f"evt_{uuid4().hex}", "data": {"object": now}})


OTHER_STEPS: dict[str, Callable[[World, dict[str, Any]], Any]] = {
    "edit customer": lambda world, intent: world.stripe.v1.customers.update(
        intent["customer"], {"metadata": {"org_id": "3"}}
    ),
    "pay": lambda world, _: pay(world, 1_500),
    "pay 2": lambda world, _: pay(world, 1_500, org_id=2),
    "pay unheard by another card": lambda world, _: pay_unheard(world, "pm_card_mastercard"),
    "pay unheard": lambda world, _: pay_unheard(world),
    "wait": lambda world, _: world.clock.move(hours=26),
    "reconciler": lambda world, _: reconcile(world),
    "hear": lambda world, _: world.deliver(*world.events()),
    "hear now": lambda world, _: hear_as_it_is_now(world),
    "dispute": lambda world, intent: world.sandbox.open_dispute(intent["id"], amount_cents=100),
    "refund": lambda world, intent: world.sandbox.refund(intent["id"], amount_cents=100),
}


EDITS = st.fixed_dictionaries(
    {},
    optional={
        "org_id": st.sampled_from(["1", "2", "3", "99", "", "-1", "one"]),
        "attempt_kind": st.sampled_from(["top_up", "auto_reload", "", "gift"]),
        "attempt_id": st.sampled_from(
            ["", "new", "another", "not a uuid", *(f"attempt {number}" for number in range(6))]
        ),
    },
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), st.integers(0, 5), EDITS),
        st.tuples(
            st.sampled_from([*OTHER_STEPS]),
            st.integers(0, 5),
            st.just({}),
        ),
    ),
    min_size=3,
    max_size=14,
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_no_edit_of_metadata_between_any_two_steps_moves_money(site: Site, steps: list[Any]) -> None:
    """Of each PaymentIntent at most what was received is credited, once, and to the org whose customer paid."""
    world = site.fresh()
    world.read_events()
    world.save_card()
    for org_id in (2, 3):
        world.make_org(org_id)
    world.save_card(org_id=2)
    pay(world)
    for name, which, edits in steps:
        step(world, name, world.intents()[which % len(world.intents())], edits)
        check(world)
    for hours in (0.1, 26, 27):
        world.clock.move(hours=hours)
        hear_all(world)
        check(world)
    assert [each for each in world.attempts() if each.open] == []
    for org_id in (1, 2):  # all that was taken is credited
        assert world.balance(org_id) == world.held_cents(org_id)
    world.mend_gates()


def check(world: World) -> None:
    owners = dict(world.rows("SELECT customer_id, org_id FROM stripe_customers"))
    intents = {each["id"]: each for each in world.intents()}
    there = credited(world)
    assert len({intent for _, intent, _ in there}) == len(there)
    for org_id, intent, cents in there:
        assert owners[intents[intent]["customer"]] == org_id
        assert cents <= intents[intent]["amount_received"]
    for row in world.rows(
        "SELECT org_id, metadata ->> 'payment_intent_id' AS intent FROM transactions WHERE kind = 'refund'"
    ):
        assert owners[intents[row.intent]["customer"]] == row.org_id
    assert world.balance(3) == 0
    assert {each.invariant for each in broken(world)} == set()


def broken(world: World) -> list[Any]:
    """What the audit finds, but for what nobody has looked at or ended: between two steps no reconciler runs."""
    unattended = {"attempt_watched", "attempt_ends"}
    return [each for each in run_audit(world.engine).violations if each.invariant not in unattended]


def test_a_customer_is_never_given_to_another_org(own_world: World, database: Database) -> None:
    own_world.save_card()
    own_world.make_org(2)
    customer = own_world.account().stripe_customer_id
    for refused in (
        f"UPDATE accounts SET stripe_customer_id = '{customer}' WHERE org_id = 2",  # noqa: S608
        f"INSERT INTO accounts (org_id, name, created_at, stripe_customer_id) VALUES (3, 'Org 3', now(), '{customer}')",  # noqa: S608
        "UPDATE stripe_customers SET org_id = 2",
        "DELETE FROM stripe_customers",
        "TRUNCATE stripe_customers",
    ):
        with (
            psycopg.connect(database.owner_url.replace("+psycopg", ""), autocommit=True) as owner,
            pytest.raises(psycopg.errors.IntegrityConstraintViolation),
        ):
            owner.execute(refused.encode())


def test_the_version_before_notes_customers_in_the_account_alone_and_they_are_known_all_the_same(
    own_world: World, database: Database
) -> None:
    """It runs beside this one while an installation is updated."""
    own_world.save_card()
    own_world.make_org(2)
    customer = own_world.payments.stripe.create_customer(2, "Org 2", key="any")
    with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as before:
        before.execute("UPDATE accounts SET stripe_customer_id = %s WHERE org_id = 2", [customer])
    assert (customer, 2) in [
        tuple(row) for row in own_world.rows("SELECT customer_id, org_id FROM stripe_customers")
    ]


def test_the_customer_of_an_account_that_is_inserted_is_noted(own_world: World, database: Database) -> None:
    """Nothing of the program does so: whoever merges or restores does."""
    with psycopg.connect(database.owner_url.replace("+psycopg", ""), autocommit=True) as owner:
        owner.execute(
            "INSERT INTO accounts (org_id, name, created_at, stripe_customer_id) VALUES (3, 'Org 3', now(), 'cus_3')"
        )
    noted = own_world.rows("SELECT customer_id, org_id FROM stripe_customers")
    assert ("cus_3", 3) in [tuple(row) for row in noted]


def test_no_payment_is_credited_twice_over_all_orgs_whoever_tries(
    own_world: World, database: Database
) -> None:
    own_world.save_card()
    own_world.make_org(2)
    intent = pay(own_world)
    with (
        psycopg.connect(database.owner_url.replace("+psycopg", ""), autocommit=True) as owner,
        pytest.raises(psycopg.errors.UniqueViolation),
    ):
        owner.execute(
            "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
            " VALUES (2, 'credit', 2000, 2000, now(), 'Top-up', %s)",
            [intent],
        )


def test_both_audits_find_a_payment_credited_to_another_org_and_what_corrects_it(
    own_world: World, database: Database
) -> None:
    """As the version before could do it: its second credit is still there."""
    world = own_world
    world.save_card()
    world.make_org(2)
    intent = pay(world)
    credit_elsewhere(database, intent)
    world.clock.move(hours=1)
    report = broken(world)
    assert {each.invariant for each in report} == {"payment_in_customers_org"}
    assert [each.org_id for each in report] == [2]
    assert f"--key {intent}" in report[0].detail
    assert violations(world) == [(CHARGE_ELSEWHERE, 2)]

    world.adjust(-2_000, org_id=2, key=intent)

    assert broken(world) == []
    assert violations(world) == []


def credit_elsewhere(database: Database, intent: str) -> None:
    """Credit org 2 for a payment of org 1, with an attempt of its own, as the version before recovered them."""
    as_admin(
        database,
        "DROP INDEX transactions_credit_key",
        f"""INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key,
            metadata) VALUES (2, 'credit', 2000, 2000, '2026-04-20 12:00:00+00', 'Top-up', '{intent}',
            '{{"payment_intent_id": "{intent}"}}')""",  # noqa: S608
        "UPDATE accounts SET balance_cents = 2000, transaction_count = 1, version = 1,"
        " last_posted_at = '2026-04-20 12:00:00+00' WHERE org_id = 2",
        f"""INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, status,
            payment_intent_id, look_at, finished_at, recovered)
        SELECT 2, '{uuid4()}', kind, amount_cents, customer_id, payment_method_id, created_at, status, payment_intent_id,
            look_at, finished_at, true FROM payment_attempts WHERE payment_intent_id = '{intent}'""",  # noqa: S608
    )


# A database that was restored to a time before it knew a customer


def lose_the_customer(world: World, database: Database) -> str:
    """Org 1 pays with a customer that the database then forgets; give the PaymentIntent's id."""
    world.read_events()
    backup = Backup(database)
    world.save_card()
    intent = pay(world)
    world.clock.move(days=3)
    backup.restore()
    return intent


def test_a_forgotten_customer_is_known_again_by_the_key_that_made_him(
    own_world: World, database: Database
) -> None:
    """Metadata can be edited afterwards; the event of his making, with our key, can't."""
    intent = lose_the_customer(own_world, database)
    own_world.stripe.v1.customers.update(own_world.intents()[0]["customer"], {"metadata": {"org_id": "2"}})
    recover(own_world)
    assert credited(own_world) == [(1, intent, 2_000)]
    own_world.assert_sound()


def test_metadata_alone_never_make_a_customer_anybodys(own_world: World, database: Database) -> None:
    """Neither his own nor the payment's: org 2 gets nothing, and it is told."""
    world = own_world
    intent = lose_the_customer(world, database)
    world.make_org(2)
    world.stripe.v1.customers.update(world.intents()[0]["customer"], {"metadata": {"org_id": "2"}})
    edit(world, intent, org_id="2")
    recover(world)
    assert [org_id for org_id, _, _ in credited(world)] in ([], [1])
    assert world.balance(2) == 0


def test_an_org_that_got_a_forgotten_ones_number_does_not_get_its_customer(
    own_world: World, database: Database
) -> None:
    """The org was made after the backup, and so was forgotten; another one is the next to get its id."""
    world = own_world
    world.read_events()
    backup = Backup(database)
    world.make_org(2)
    world.save_card(org_id=2)
    pay(world, org_id=2)
    world.clock.move(days=3)
    backup.restore()
    world.make_org(2)

    recover(world)

    assert credited(world) == []
    assert world.account(2).stripe_customer_id is None
    assert world.rows("SELECT outcome FROM stripe_events WHERE outcome = 'foreign_customer'")


def test_stripe_not_answering_who_a_customer_is_decides_nothing(own_world: World, database: Database) -> None:
    intent = lose_the_customer(own_world, database)
    own_world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="customers.retrieve", count=4)
    recover(own_world)
    assert credited(own_world) == []
    own_world.sandbox.clear_faults()
    recover(own_world)
    assert credited(own_world) == [(1, intent, 2_000)]


def test_an_org_keeps_all_customers_that_it_ever_had(own_world: World, database: Database) -> None:
    """A late webhook of one that is no longer used is credited, and doesn't bring him back."""
    world = own_world
    world.save_card("pm_card_threeDSecure2Required")
    intent = pay(world)
    world.sandbox.authenticate(intent)
    as_admin(database, "UPDATE accounts SET stripe_customer_id = NULL, default_payment_method_id = NULL")
    world.clock.move(days=2)
    hear_all(world)
    assert credited(world) == [(1, intent, 2_000)]
    assert world.account().stripe_customer_id is None
    world.save_card()
    pay(world, 3_000)
    assert [org_id for org_id, _, _ in credited(world)] == [1, 1]
    assert len(world.rows("SELECT FROM stripe_customers WHERE org_id = 1")) == 2

"""A customer who was deleted at Stripe, and then the one who took his place, of which a restored database knows neither."""

from metering.payments.cards import create_setup_intent, set_default_payment_method
from tests.payments.org_backup import OrgBackup
from tests.payments.reload_world import ReloadWorld


def test_a_card_is_saved_all_the_same(reloading: ReloadWorld) -> None:
    world = reloading
    world.save_card()
    assert world.admin is not None
    backup = OrgBackup(world.admin, 1)
    for _ in range(3):
        world.sandbox.delete_customer(world.account().stripe_customer_id or "")
        create_setup_intent(world.payments, 1)
    world.sandbox.delete_customer(world.account().stripe_customer_id or "")
    backup.restore()

    made = create_setup_intent(world.payments, 1)

    method = world.sandbox.confirm_setup(made.setup_intent_id)
    set_default_payment_method(world.payments, 1, method)
    world.top_up()
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()

"""Customers and their payment methods, as Stripe documents them."""

import pytest
import stripe

from tests.stripe_contract.making import DECLINED, VISA, card, customer_with_card
from tests.stripe_contract.stand_ins import StandIn, connect


def test_a_customer_comes_back_as_it_was_made(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create(
        {"email": "a@example.com", "name": "A", "metadata": {"org_id": "42", "note": "x y & z = é"}}
    )
    found = client.v1.customers.retrieve(made.id)
    assert found.id.startswith("cus_")
    assert (found.email, found.name, found.livemode) == ("a@example.com", "A", False)
    assert found.metadata is not None
    assert found.metadata.to_dict() == {"org_id": "42", "note": "x y & z = é"}


def test_metadata_changes_key_by_key(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create({"metadata": {"kept": "1", "changed": "1"}})
    changed = client.v1.customers.update(made.id, {"metadata": {"changed": "2", "new": "3"}})
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"kept": "1", "changed": "2", "new": "3"}


def test_an_empty_value_removes_a_key_of_the_metadata(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create({"metadata": {"kept": "1", "removed": "1"}})
    changed = client.v1.customers.update(made.id, {"metadata": {"removed": ""}})
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"kept": "1"}


def test_a_missing_customer_is_a_404(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.customers.retrieve("cus_none")
    assert raised.value.http_status == 404


def test_what_is_missing_is_named(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.customers.retrieve("cus_none")
    assert (raised.value.code, raised.value.param) == ("resource_missing", "id")
    assert raised.value.user_message == "No such customer: 'cus_none'"


def test_unknown_parameters_are_refused(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.customers.create({"colour": "blue"})  # type: ignore[arg-type]
    assert raised.value.http_status == 400


def test_unknown_parameters_are_named(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.customers.create({"colour": "blue"})  # type: ignore[arg-type]
    assert (raised.value.code, raised.value.param) == ("parameter_unknown", "colour")


def test_a_key_that_is_not_the_accounts_is_refused(stand_in: StandIn) -> None:
    with pytest.raises(stripe.AuthenticationError) as raised:
        connect(stand_in.url, "sk_test_somebody_elses").v1.customers.create({})
    assert raised.value.http_status == 401


def test_a_publishable_key_is_refused(stand_in: StandIn) -> None:
    with pytest.raises(stripe.AuthenticationError):
        connect(stand_in.url, "pk_test_sandbox").v1.customers.create({})


def test_a_deleted_customer_says_so(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create({})
    assert client.v1.customers.delete(made.id).deleted
    assert getattr(client.v1.customers.retrieve(made.id), "deleted", False)


def test_customers_are_found_by_email(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create({"email": "only-one@example.com"})
    found = client.v1.customers.list({"email": "only-one@example.com"})
    assert [each.id for each in found.data] == [made.id]


def test_lists_are_newest_first(client: stripe.StripeClient) -> None:
    made = [client.v1.customers.create({}).id for _ in range(2)]
    assert [each.id for each in client.v1.customers.list({"limit": 2}).data] == made[::-1]


def test_pages_follow_each_other_without_gap_or_overlap(client: stripe.StripeClient) -> None:
    made = {client.v1.customers.create({}).id for _ in range(3)}
    seen: list[str] = []
    page = client.v1.customers.list({"limit": 2})
    while page.data:
        seen += [each.id for each in page.data]
        if not page.has_more:
            break
        page = client.v1.customers.list({"limit": 2, "starting_after": seen[-1]})
    assert made <= set(seen)
    assert len(seen) == len(set(seen))


def test_a_card_is_attached_listed_and_detached(client: stripe.StripeClient) -> None:
    customer_id, method_id = customer_with_card(client)
    methods = client.v1.payment_methods.list({"customer": customer_id, "type": "card"})
    assert [(each.id, each.customer) for each in methods.data] == [(method_id, customer_id)]
    assert client.v1.payment_methods.detach(method_id).customer is None
    assert client.v1.payment_methods.list({"customer": customer_id, "type": "card"}).data == []


def test_a_card_shows_its_last_digits_and_never_the_rest(client: stripe.StripeClient) -> None:
    method = card(client)
    assert method.card is not None
    assert (method.type, method.card.last4, method.card.brand) == ("card", "4242", "visa")
    assert VISA not in str(method)


def test_the_same_card_has_the_same_fingerprint(client: stripe.StripeClient) -> None:
    one, other, another = card(client), card(client), card(client, "5555555555554444")
    assert one.id != other.id
    assert one.card is not None
    assert other.card is not None
    assert another.card is not None
    assert one.card.fingerprint == other.card.fingerprint != another.card.fingerprint


def test_a_test_token_is_a_new_payment_method_each_time(client: stripe.StripeClient) -> None:
    one, other = (client.v1.payment_methods.retrieve("pm_card_visa") for _ in range(2))
    assert one.id != other.id
    assert "pm_card_visa" not in {one.id, other.id}


def test_a_card_that_the_bank_declines_is_not_attached(client: stripe.StripeClient) -> None:
    customer = client.v1.customers.create({})
    with pytest.raises(stripe.CardError) as raised:
        client.v1.payment_methods.attach(card(client, DECLINED).id, {"customer": customer.id})
    assert (raised.value.http_status, raised.value.code) == (402, "card_declined")
    assert client.v1.payment_methods.list({"customer": customer.id, "type": "card"}).data == []


def test_a_card_is_attached_to_one_customer_only(client: stripe.StripeClient) -> None:
    _, method_id = customer_with_card(client)
    other = client.v1.customers.create({})
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_methods.attach(method_id, {"customer": other.id})


def test_a_detached_card_is_never_attached_again(client: stripe.StripeClient) -> None:
    customer_id, method_id = customer_with_card(client)
    client.v1.payment_methods.detach(method_id)
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_methods.attach(method_id, {"customer": customer_id})


def test_the_default_for_invoices_is_kept(client: stripe.StripeClient) -> None:
    customer_id, method_id = customer_with_card(client)
    client.v1.customers.update(customer_id, {"invoice_settings": {"default_payment_method": method_id}})
    found = client.v1.customers.retrieve(customer_id)
    assert found.invoice_settings is not None
    assert found.invoice_settings.default_payment_method == method_id


def test_another_customers_card_is_no_default(client: stripe.StripeClient) -> None:
    customer_id, _ = customer_with_card(client)
    _, foreign_id = customer_with_card(client)
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.update(customer_id, {"invoice_settings": {"default_payment_method": foreign_id}})


def test_a_detached_card_is_no_default_any_more(client: stripe.StripeClient) -> None:
    customer_id, method_id = customer_with_card(client)
    client.v1.customers.update(customer_id, {"invoice_settings": {"default_payment_method": method_id}})
    client.v1.payment_methods.detach(method_id)
    found = client.v1.customers.retrieve(customer_id)
    assert found.invoice_settings is not None
    assert found.invoice_settings.default_payment_method is None

"""What localstripe does otherwise than Stripe, test by test, and so otherwise than the sandbox.

Each line is a claim that is tested: a test that is named here and passes against localstripe fails the suite.
"""

from typing import Final

_NO_KEYS: Final = "ignores Idempotency-Key"
_PLAIN_ERRORS: Final = "has errors with a status and a text, seldom a code, never a parameter's name"
_ANY_OWNER: Final = "does not look at whose a card is"
_OLDEST_FIRST: Final = "lists the oldest first"
_NO_LIMITS: Final = "has no limits to an amount but that it is positive"
_FEWER_PARAMETERS: Final = "knows fewer parameters, and refuses the others"
_FEWER_EVENTS: Final = "has no event of that type"

DIFFERENCES: Final[dict[str, str]] = {
    # customers and their cards
    "test_an_empty_value_removes_a_key_of_the_metadata": "keeps the key, with an empty value",
    "test_what_is_missing_is_named": _PLAIN_ERRORS,
    "test_unknown_parameters_are_named": _PLAIN_ERRORS,
    "test_a_key_that_is_not_the_accounts_is_refused": "takes any key that begins with sk_",
    "test_a_deleted_customer_says_so": "forgets deleted customers",
    "test_lists_are_newest_first": _OLDEST_FIRST,
    "test_a_card_is_attached_to_one_customer_only": _ANY_OWNER,
    "test_a_detached_card_is_never_attached_again": _ANY_OWNER,
    "test_another_customers_card_is_no_default": _ANY_OWNER,
    "test_a_detached_card_is_no_default_any_more": "leaves a detached card the default",
    # payments
    "test_a_payment_says_what_it_received": "has no amount_received",
    "test_its_charge_is_an_id_unless_it_is_expanded": "always expands latest_charge",
    "test_a_decline_says_that_it_is_the_cards": "says invalid_request_error, with the status of a card error",
    "test_a_decline_has_the_banks_reason": _PLAIN_ERRORS,
    "test_a_decline_carries_its_payment_intent": _PLAIN_ERRORS,
    "test_a_challenge_off_session_is_a_decline_with_its_intent": "answers requires_action off-session too",
    "test_less_than_50_cents_is_too_small": _NO_LIMITS,
    "test_a_million_dollars_is_too_large": _NO_LIMITS,
    "test_another_customers_card_is_refused": _ANY_OWNER,
    "test_payment_method_types_are_no_parameter_any_more": "knows the API before endive",
    "test_a_payment_whose_customer_is_there_needs_a_way_back": "knows cards only, which never redirect",
    "test_without_redirects_no_way_back_is_needed": _FEWER_PARAMETERS,
    "test_stripe_js_meets_the_challenge_though_there_is_a_way_back": _FEWER_PARAMETERS,
    "test_without_stripe_js_the_challenge_is_a_redirect_and_back": "leaves every challenge to Stripe.js",
    "test_why_an_intent_is_not_cancelled_has_a_code": _PLAIN_ERRORS,
    "test_a_customers_intents_are_listed_newest_first": _FEWER_PARAMETERS,
    "test_a_charge_is_found_by_its_intent": _FEWER_PARAMETERS,
    # setting up cards
    "test_the_card_of_a_setup_intent_becomes_the_customers": "leaves attaching the card to the caller",
    "test_a_server_that_sets_up_a_card_needs_a_way_back": "knows cards only, which never redirect",
    "test_without_redirects_setting_up_needs_no_way_back": _FEWER_PARAMETERS,
    "test_setup_intents_take_no_payment_method_types_any_more": "knows the API before endive",
    "test_a_setup_intent_can_be_tried_again_after_a_decline": "cancels a SetupIntent whose card is declined",
    # money that goes back
    "test_what_is_left_is_all_that_can_be_refunded": "refunds more than was paid",
    "test_nothing_is_refunded_twice": "refunds more than was paid",
    "test_a_payment_without_disputes_has_none": "has no disputes",
    # idempotency keys
    "test_a_key_gets_its_first_answer_again": _NO_KEYS,
    "test_a_key_is_for_one_set_of_parameters": _NO_KEYS,
    "test_a_key_is_for_one_endpoint": _NO_KEYS,
    "test_a_decline_is_an_answer_too": _NO_KEYS,
    # events
    "test_a_saved_card_is_told": _FEWER_EVENTS,
    "test_a_refund_is_told": _FEWER_EVENTS,
    "test_events_are_newest_first": _OLDEST_FIRST,
}

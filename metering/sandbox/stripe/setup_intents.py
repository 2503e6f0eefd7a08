"""SetupIntents: a card is saved for later, without a charge."""

from typing import Any, Final

from metering.sandbox.stripe.actions import (
    CONFIRMING,
    METHODS,
    NO_TYPES,
    accepted_methods,
    authentication_failure,
    chosen_method,
    edit_waiting,
    next_action,
    require_confirm,
    require_own_secret,
    require_return_url,
)
from metering.sandbox.stripe.cards import Authentication, decline_for
from metering.sandbox.stripe.errors import CARD_ERROR, DeclinedError, InvalidRequestError
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import (
    EXPAND,
    LISTING,
    Boolean,
    Choice,
    Hash,
    Metadata,
    Text,
    changed_metadata,
)
from metering.sandbox.stripe.payment_methods import card_of, save
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import PRIVATE, Json, new_id, new_secret, shown

_USAGE: Final = Choice(("off_session", "on_session"))
CREATE: Final = Hash(
    {
        **EXPAND,
        **METHODS,
        **CONFIRMING,
        "confirm": Boolean(),
        "customer": Text(),
        "description": Text(unsettable=True),
        "metadata": Metadata(),
        "usage": _USAGE,
    }
)
RETRIEVE: Final = Hash({**EXPAND, "client_secret": Text()})
UPDATE: Final = Hash({**EXPAND, **NO_TYPES, "description": Text(unsettable=True), "metadata": Metadata()})
CONFIRM: Final = Hash({**EXPAND, **CONFIRMING})
CANCEL: Final = Hash(
    {**EXPAND, "cancellation_reason": Choice(("abandoned", "duplicate", "requested_by_customer"))}
)
LIST: Final = Hash({**LISTING, "customer": Text(), "payment_method": Text()})

CANCELLABLE: Final = ("requires_payment_method", "requires_confirmation", "requires_action")


def create(work: Work, params: Json) -> Json:
    """Make a SetupIntent; with `confirm` save the card at once."""
    if "customer" in params:
        work.find(params["customer"], "customer", "customer")
    require_confirm(params, ("return_url",), "SetupIntent")
    intent = work.add(_intent(work, params))
    method = chosen_method(work, intent, params)
    if method is not None:
        intent |= {"payment_method": method["id"], "status": "requires_confirmation"}
    work.emit("setup_intent.created", intent)
    return confirm_setup(work, intent, params) if params.get("confirm") else intent


def retrieve(work: Work, params: Json, intent_id: str) -> Json:
    """A SetupIntent. A `client_secret` that is given must be its own."""
    intent = work.find(intent_id, "setup_intent", "intent", in_path=True)
    require_own_secret(intent, params, "SetupIntent")
    return intent


def update(work: Work, params: Json, intent_id: str) -> Json:
    """Change what is only text."""
    intent = work.edit(work.find(intent_id, "setup_intent", "intent", in_path=True))
    if "metadata" in params:
        intent["metadata"] = changed_metadata(intent["metadata"], params["metadata"])
    if "description" in params:
        intent["description"] = params["description"]
    return intent


def confirm(work: Work, params: Json, intent_id: str) -> Json:
    """Save the card. Raises DeclinedError, which carries the intent."""
    held = work.find(intent_id, "setup_intent", "intent", in_path=True)
    if held["status"] not in CANCELLABLE:
        raise InvalidRequestError(
            f"You cannot confirm this SetupIntent because it has a status of {held['status']}.",
            code="setup_intent_unexpected_state",
            setup_intent=held,
        )
    return confirm_setup(work, work.edit(held), params)


def cancel(work: Work, params: Json, intent_id: str) -> Json:
    """Cancel a SetupIntent for good."""
    held = work.find(intent_id, "setup_intent", "intent", in_path=True)
    if held["status"] not in CANCELLABLE:
        raise InvalidRequestError(
            f"You cannot cancel this SetupIntent because it has a status of {held['status']}. Only a SetupIntent with one of the "
            f"following statuses may be canceled: {', '.join(CANCELLABLE)}.",
            code="setup_intent_unexpected_state",
            setup_intent=held,
        )
    intent = work.edit(held)
    intent |= {
        "status": "canceled",
        "cancellation_reason": params.get("cancellation_reason"),
        "next_action": None,
    }
    work.emit("setup_intent.canceled", intent)
    return intent


def list_intents(work: Work, params: Json) -> Json:
    """A page of SetupIntents."""
    where = ("customer", params["customer"]) if "customer" in params else None

    def wanted(intent: Json) -> bool:
        return "payment_method" not in params or intent["payment_method"] == params["payment_method"]

    newest = work.newest("setup_intent", where)
    return page(work, "/v1/setup_intents", params, newest, "setup_intent", keep=wanted)


def confirm_setup(work: Work, intent: Json, params: Json) -> Json:
    """Save the card of an intent that `work` is changing, or ask for its holder. Raises DeclinedError."""
    method = chosen_method(work, intent, params)
    if method is None:
        raise InvalidRequestError(
            "You cannot confirm this SetupIntent because it's missing a payment method. Update the SetupIntent with a payment "
            "method and then confirm it again.",
            code="setup_intent_unexpected_state",
            setup_intent=intent,
        )
    require_return_url(intent, params, "SetupIntent")
    intent |= {"payment_method": method["id"], "next_action": None, "latest_attempt": new_id("setatt")}
    if card_of(method).authentication in {Authentication.ALWAYS, Authentication.UNLESS_SET_UP}:
        intent |= {"status": "requires_action", "next_action": next_action(params, intent["id"])}
        work.emit("setup_intent.requires_action", intent)
        return intent
    return _save(work, intent, method)


def authenticate_setup(work: Work, intent_id: str, *, succeeds: bool) -> Json:
    """What the customer does in the browser: prove to be the holder, or fail to. Answers the intent, whatever came of it."""
    intent = edit_waiting(work, intent_id, "setup_intent", "requires_action")
    method = work.find(intent["payment_method"], "payment_method", "payment_method")
    if succeeds:
        try:
            return _save(work, intent, method)
        except DeclinedError:
            return intent
    _fail(work, intent, authentication_failure("setup_intent_authentication_failure", method))
    return intent


def _save(work: Work, intent: Json, method: Json) -> Json:
    card = card_of(method)
    if card.decline is not None and not card.attaches:
        decline = decline_for(card.decline)
        details: dict[str, Any] = {"code": decline.code, "decline_code": decline.decline_code}
        error = DeclinedError(decline.message, **details, payment_method=method)
        _fail(work, intent, shown(error.error) | {"type": CARD_ERROR})
        error.error["setup_intent"] = shown(intent)
        raise error
    method = work.edit(method)
    method[PRIVATE]["set_up"] = intent["usage"] == "off_session"
    if intent["customer"] is not None and method["customer"] is None:
        save(work, method, intent["customer"])
    intent |= {"status": "succeeded", "next_action": None, "last_setup_error": None}
    work.emit("setup_intent.succeeded", intent)
    return intent


def _fail(work: Work, intent: Json, error: Json) -> None:
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "next_action": None,
        "last_setup_error": error,
    }
    work.emit("setup_intent.setup_failed", intent)


def _intent(work: Work, params: Json) -> Json:
    intent_id = new_id("seti")
    return {
        "id": intent_id,
        "object": "setup_intent",
        "application": None,
        **accepted_methods(params),
        "cancellation_reason": None,
        "client_secret": new_secret(intent_id),
        "created": work.now,
        "customer": params.get("customer"),
        "description": params.get("description"),
        "excluded_payment_method_types": None,
        "flow_directions": None,
        "last_setup_error": None,
        "latest_attempt": None,
        "livemode": False,
        "mandate": None,
        "metadata": changed_metadata({}, params.get("metadata", {})),
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_configuration_details": None,
        "payment_method_options": {
            "card": {"mandate_options": None, "network": None, "request_three_d_secure": "automatic"}
        },
        "single_use_mandate": None,
        "status": "requires_payment_method",
        "usage": params.get("usage", "off_session"),
    }

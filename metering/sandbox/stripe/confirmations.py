"""How a PaymentIntent is confirmed: the bank takes the money, wants the holder, or declines."""

from typing import Any

from metering.sandbox.stripe.actions import (
    authentication_failure,
    chosen_method,
    edit_waiting,
    needs_holder,
    next_action,
    require_return_url,
)
from metering.sandbox.stripe.cards import AfterCharge, Decline, decline_for
from metering.sandbox.stripe.charges import make_charge
from metering.sandbox.stripe.disputes import open_dispute
from metering.sandbox.stripe.errors import CARD_ERROR, DeclinedError, InvalidRequestError
from metering.sandbox.stripe.payment_methods import card_of, save
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import PRIVATE, Json, shown


def confirm_intent(work: Work, intent: Json, params: Json) -> Json:
    """Try to take the money of an intent that `work` is changing. Raises DeclinedError, which carries the intent."""
    method = chosen_method(work, intent, params)
    if method is None:
        raise InvalidRequestError(
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update the "
            "PaymentIntent with a payment method and then confirm it again, or confirm it again directly with a payment "
            "method or ConfirmationToken.",
            code="payment_intent_unexpected_state",
            payment_intent=intent,
        )
    off_session = bool(params.get("off_session"))
    _require_fitting(intent, params, off_session=off_session)
    intent |= {"payment_method": method["id"], "next_action": None}
    intent[PRIVATE]["off_session"] = off_session
    if not needs_holder(method, off_session=off_session):
        return _take(work, intent, method)
    if off_session:
        raise _declined(work, intent, method, decline_for("authentication_required"))
    intent |= {"status": "requires_action", "next_action": next_action(params, intent["id"])}
    work.emit("payment_intent.requires_action", intent)
    return intent


def _require_fitting(intent: Json, params: Json, *, off_session: bool) -> None:
    """Refuse ways to confirm that don't go with the intent, or with each other."""
    if not off_session:
        require_return_url(intent, params, "PaymentIntent")
    elif intent["setup_future_usage"] is not None:
        raise InvalidRequestError(
            "You cannot confirm with the `off_session` parameter when `setup_future_usage` is also set on the PaymentIntent "
            "because you cannot set up future usages when processing payments off-session.",
            param="off_session",
        )
    # docs.stripe.com/changelog/2023-08-16/automatic-payment-methods
    if params.get("error_on_requires_action"):
        raise InvalidRequestError(
            "The parameter `error_on_requires_action` cannot be used with dynamic payment methods.",
            param="error_on_requires_action",
        )


def finish_processing(work: Work, intent_id: str, *, succeeds: bool) -> Json:
    """The bank of a slow card has decided. Answers the intent, whatever came of it."""
    intent = edit_waiting(work, intent_id, "payment_intent", "processing")
    method = work.find(intent["payment_method"], "payment_method", "payment_method")
    try:
        if not succeeds:
            raise _declined(work, intent, method, decline_for("generic_decline"))
        return _charge(work, intent, method)
    except DeclinedError:
        return intent


def authenticate(work: Work, intent_id: str, *, succeeds: bool) -> Json:
    """What the customer does in the browser: prove to be the holder, or fail to. Answers the intent, whatever came of it."""
    intent = edit_waiting(work, intent_id, "payment_intent", "requires_action")
    method = work.find(intent["payment_method"], "payment_method", "payment_method")
    if succeeds:
        try:
            return _take(work, intent, method)
        except DeclinedError:
            return intent
    _back_to_start(
        intent,
        authentication_failure("payment_intent_authentication_failure", method),
    )
    work.emit("payment_intent.payment_failed", intent)
    return intent


def _take(work: Work, intent: Json, method: Json) -> Json:
    """Take the money, the holder being content; a slow bank takes its time."""
    if method[PRIVATE]["slow"]:
        intent |= {"status": "processing", "next_action": None}
        work.emit("payment_intent.processing", intent)
        return intent
    return _charge(work, intent, method)


def _charge(work: Work, intent: Json, method: Json) -> Json:
    method = work.edit(method)
    card = card_of(method)
    reason = method[PRIVATE]["decline"] or card.decline
    if reason is not None:
        raise _declined(work, intent, method, decline_for(reason))
    charge = make_charge(work, intent, method, None)
    intent |= {
        "status": "succeeded",
        "amount_received": intent["amount"],
        "latest_charge": charge["id"],
        "last_payment_error": None,
        "next_action": None,
    }
    if intent["customer"] is not None and intent["setup_future_usage"] is not None:
        if intent["setup_future_usage"] == "off_session":
            method[PRIVATE]["set_up"] = True
        if method["customer"] is None:
            save(work, method, intent["customer"])
    method[PRIVATE]["spent"] = method["customer"] is None
    work.emit("payment_intent.succeeded", intent)
    if card.after in {AfterCharge.DISPUTE, AfterCharge.DISPUTE_NOT_RECEIVED}:
        open_dispute(work, charge, reason=card.after.value)
    elif card.after is AfterCharge.INQUIRY:
        open_dispute(work, charge, inquiry=True)
    return intent


def _declined(work: Work, intent: Json, method: Json, decline: Decline) -> DeclinedError:
    """The error for a card that said no; the intent goes back to where it needs another one."""
    details: dict[str, Any] = {"code": decline.code, "decline_code": decline.decline_code}
    charge = make_charge(work, intent, method, decline)
    intent["latest_charge"] = details["charge"] = charge["id"]
    details["payment_method"] = shown(method)
    error = DeclinedError(decline.message, **details)
    _back_to_start(intent, shown(error.error) | {"type": CARD_ERROR})
    work.emit("payment_intent.payment_failed", intent)
    error.error["payment_intent"] = shown(intent)
    return error


def _back_to_start(intent: Json, error: Json) -> None:
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "next_action": None,
        "last_payment_error": error,
    }

"""What intents of both kinds have in common: which payment methods they take, and what a customer has yet to do."""

from typing import Final

from metering.sandbox.stripe.cards import Authentication
from metering.sandbox.stripe.errors import INVALID_REQUEST, InvalidRequestError, doc_url
from metering.sandbox.stripe.params import Array, Boolean, Choice, Gone, Hash, Param, Text
from metering.sandbox.stripe.payment_methods import card_of, found, require_usable
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import PRIVATE, Json, new_id, shown

NO_TYPES: Final[dict[str, Param]] = {
    # docs.stripe.com/changelog/endive/2026-09-30/
    # removes-the-payment-method-types-parameter-from-payment-intents-and-setup-intents
    "payment_method_types": Gone(
        "payment_method_types_no_longer_supported",
        "`payment_method_types` is no parameter since API version 2026-09-30.endive: use dynamic payment methods, or "
        "`allowed_payment_method_types` to take some types only.",
    ),
}
METHODS: Final[dict[str, Param]] = {
    "automatic_payment_methods": Hash(
        {"enabled": Boolean(), "allow_redirects": Choice(("always", "never"))}, frozenset({"enabled"})
    ),
    "allowed_payment_method_types": Array(Choice(("card",))),
    **NO_TYPES,
}
"""The parameters that say which payment methods an intent takes."""

CONFIRMING: Final[dict[str, Param]] = {
    "payment_method": Text(),
    "return_url": Text(),
    "use_stripe_sdk": Boolean(),
}
"""The parameters that both kinds of intent take when they are confirmed."""

RETURN_URL_NEEDED: Final = (
    "This {kind} is configured to accept payment methods enabled in your Dashboard. Because some of these payment methods "
    "might redirect your customer off of your page, you must provide a `return_url`. If you don't want to accept "
    "redirect-based payment methods, set `automatic_payment_methods[enabled]` to `true` and "
    "`automatic_payment_methods[allow_redirects]` to `never` when creating Setup Intents and Payment Intents."
)


def accepted_methods(params: Json) -> Json:
    """The fields of an intent that say which payment methods it takes; all that are enabled, unless it is told."""
    automatic = params.get("automatic_payment_methods")
    types = params.get("allowed_payment_method_types")
    # docs.stripe.com/changelog/dahlia/2026-07-29/allowed-payment-method-types-parameter: the one excludes the other, and so
    # `allow_redirects`, which is part of it.
    if automatic and types:
        raise InvalidRequestError(
            "You may only specify one of these parameters: automatic_payment_methods, allowed_payment_method_types.",
            param="automatic_payment_methods",
        )
    on = automatic["enabled"] if automatic else types is None
    redirects = (automatic or {}).get("allow_redirects", "always")
    return {
        "allowed_payment_method_types": types,
        "automatic_payment_methods": {"allow_redirects": redirects, "enabled": True} if on else None,
        "payment_method_types": ["card"],
    }


def chosen_method(work: Work, intent: Json, params: Json) -> Json | None:
    """The payment method that parameters name, else the intent's own; None where there is none.

    Raises InvalidRequestError for one that the intent can't use, and where its customer has been deleted.
    """
    if intent["customer"] is not None:
        work.find(intent["customer"], "customer", "customer")
    if "payment_method" in params:
        method = found(work, params["payment_method"], "payment_method")
    elif intent["payment_method"] is not None:
        method = work.find(intent["payment_method"], "payment_method", "payment_method")
    else:
        return None
    require_usable(method, intent["customer"])
    return method


def may_redirect(intent: Json) -> bool:
    """Whether an intent takes methods that might send its customer elsewhere, as far as Stripe looks: also one for cards alone.

    Since endive all are dynamic. What docs.stripe.com/changelog/2023-08-16/automatic-payment-methods wants of those is bypassed
    by `allow_redirects` alone; nothing there or elsewhere exempts `allowed_payment_method_types`, and who wants a card's holder
    asks him on his bank's page. If Stripe is milder, nobody loses by a way back that it didn't need.
    """
    automatic = intent["automatic_payment_methods"]
    return automatic is None or automatic["allow_redirects"] == "always"


def require_return_url(intent: Json, params: Json, kind: str) -> None:
    """Refuse to confirm an intent that might redirect and has nowhere to come back to."""
    if may_redirect(intent) and "return_url" not in params:
        raise InvalidRequestError(RETURN_URL_NEEDED.format(kind=kind), param="return_url")


def require_confirm(params: Json, names: tuple[str, ...], kind: str) -> None:
    """Refuse parameters that say how to confirm where nothing is confirmed."""
    if params.get("confirm"):
        return
    for name in names:
        if params.get(name):
            raise InvalidRequestError(
                f"The parameter `{name}` cannot be passed when creating a {kind} unless `confirm` is set to true.",
                param=name,
            )


def require_own_secret(intent: Json, params: Json, kind: str) -> None:
    """Refuse a `client_secret` that is another intent's."""
    if params.get("client_secret", intent["client_secret"]) != intent["client_secret"]:
        raise InvalidRequestError(
            f"The client_secret provided does not match the client_secret associated with this {kind}.",
            code=f"{intent['object']}_invalid_parameter",
            param="client_secret",
        )


def needs_holder(method: Json, *, off_session: bool) -> bool:
    """Whether the card's bank wants its holder now."""
    wants = card_of(method).authentication
    if wants is Authentication.ALWAYS:
        return True
    if wants is Authentication.UNLESS_SET_UP:
        return not off_session or not method[PRIVATE]["set_up"]
    return wants is Authentication.ON_SESSION and not off_session


def edit_waiting(work: Work, intent_id: str, kind: str, status: str) -> Json:
    """An intent that waits, in `status`, for its customer or its bank, to be changed. Refuses one that doesn't."""
    held = work.find(intent_id, kind, "intent")
    if held["status"] != status:
        raise InvalidRequestError(
            f"This {kind} doesn't wait: its status is {held['status']}, not {status}.",
            code=f"{kind}_unexpected_state",
        )
    return work.edit(held)


def next_action(params: Json, intent_id: str) -> Json:
    """What is to happen in the customer's browser: a redirect where there is a way back, else something for Stripe.js."""
    url = f"https://hooks.stripe.com/3d_secure_2/hosted?intent={intent_id}"
    if "return_url" in params and not params.get("use_stripe_sdk"):
        return {
            "redirect_to_url": {"return_url": params["return_url"], "url": url},
            "type": "redirect_to_url",
        }
    return {
        "type": "use_stripe_sdk",
        "use_stripe_sdk": {"source": new_id("src"), "stripe_js": url, "type": "three_d_secure_redirect"},
    }


def authentication_failure(code: str, method: Json) -> Json:
    """The last error of an intent whose customer could not prove to be the card's holder."""
    return {
        "code": code,
        "doc_url": doc_url(code),
        "message": "We are unable to authenticate your payment method. Please choose a different payment method and try again.",
        "payment_method": shown(method),
        "type": INVALID_REQUEST,
    }

"""Accounts: whom API keys belong to, and what is settled in which currency. Each sees its own objects only."""

from dataclasses import dataclass
from typing import Any, Final

from metering.sandbox.stripe.api_keys import ApiKey
from metering.sandbox.stripe.errors import INVALID_REQUEST, InvalidRequestError, StripeError
from metering.sandbox.stripe.params import EXPAND, Hash
from metering.sandbox.stripe.settlement import Settlement
from metering.sandbox.stripe.store import Store, Work
from metering.sandbox.stripe.values import PRIVATE, Json, new_id

RETRIEVE: Final = Hash(EXPAND)


@dataclass(frozen=True, slots=True)
class OpenedAccount:
    """An account that was opened, and its first key."""

    id: str
    api_key: str


def retrieve_current(work: Work, params: Json) -> Json:  # noqa: ARG001
    """The account that the request's key belongs to."""
    return find_account(work, work.account)


def retrieve(work: Work, params: Json, account_id: str) -> Json:  # noqa: ARG001
    """The same by its id. Raises StripeError for any other account: the sandbox knows no connected ones."""
    if account_id != work.account:
        raise foreign(account_id)
    return find_account(work, account_id)


def foreign(account_id: str) -> StripeError:
    """403 for an account that the request's key doesn't belong to."""
    return StripeError(
        403,
        INVALID_REQUEST,
        f"The provided key does not have access to account '{account_id}' (or that account does not exist). "
        "Application access may have been revoked.",
        code="account_invalid",
    )


def find_account(work: Work, account_id: str | None) -> Json:
    """An account; None is the first. Raises InvalidRequestError."""
    found = work.get(account_id or work.first_account, "account")
    if found is None:
        raise InvalidRequestError(
            f"No such account: '{account_id}'", code="resource_missing", param="account"
        )
    return found


def open_first(store: Store) -> None:
    """Open the account that a sandbox has from the beginning, unless it is there."""
    if not store.first_account:
        with store.work() as work:
            work.add(new_account(work.now))


def open_account(work: Work, api_key: str, country: str, currency: str) -> OpenedAccount:
    """Open one more."""
    account = new_account(work.now, country, currency)
    account[PRIVATE] |= {"account": account["id"], "api_keys": [api_key]}
    work.add(account)
    return OpenedAccount(account["id"], api_key)


def keys_kept(store: Store) -> list[ApiKey]:
    """The keys of all accounts but the first."""
    with store.work() as work:
        others = [each for each in work.newest("account") if each["id"] != store.first_account]
    return [ApiKey(key, each["id"]) for each in others for key in each[PRIVATE]["api_keys"]]


def settle_in(work: Work, account_id: str | None, settlement: Settlement) -> None:
    """Let an account settle in another currency from now on."""
    account = work.edit(find_account(work, account_id))
    account["default_currency"] = settlement.currency
    account[PRIVATE]["settlement"] = settlement.kept()


def new_account(now: int, country: str = "US", currency: str = "usd", account_id: str = "") -> Json:
    """An account that is ready to take payments; `account_id` is the one that it had before."""
    account_id = account_id or new_id("acct", 16)
    nowhere: Json = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))
    return {
        "id": account_id,
        "object": "account",
        "business_profile": {
            "annual_revenue": None,
            "estimated_worker_count": None,
            "mcc": None,
            "minority_owned_business_designation": None,
            "name": "Stripe sandbox",
            "product_description": None,
            "support_address": nowhere,
            "support_email": None,
            "support_phone": None,
            "support_url": None,
            "url": None,
        },
        "business_type": None,
        "capabilities": {"card_payments": "active", "transfers": "active"},
        "charges_enabled": True,
        "controller": {"type": "account"},
        "country": country,
        "created": now,
        "default_currency": currency,
        "details_submitted": True,
        "email": "sandbox@example.com",
        "external_accounts": {
            "object": "list",
            "data": [],
            "has_more": False,
            "url": f"/v1/accounts/{account_id}/external_accounts",
        },
        "future_requirements": _nothing_required(),
        "metadata": {},
        "payouts_enabled": True,
        "requirements": _nothing_required(),
        "settings": _settings(),
        "tos_acceptance": {"date": None, "ip": None, "user_agent": None},
        "type": "standard",
        PRIVATE: {"settlement": Settlement(currency).kept()},
    }


def _nothing_required() -> Json:
    due = ("alternatives", "currently_due", "errors", "eventually_due", "past_due", "pending_verification")
    lists: dict[str, Any] = {name: [] for name in due}
    return {"current_deadline": None, "disabled_reason": None} | lists


def _settings() -> Json:
    prefixes = ("statement_descriptor_prefix", *_written("statement_descriptor_prefix"))
    return {
        "bacs_debit_payments": {"display_name": None, "service_user_number": None},
        "branding": {"icon": None, "logo": None, "primary_color": None, "secondary_color": None},
        "card_issuing": {"tos_acceptance": {"date": None, "ip": None}},
        "card_payments": {
            "decline_on": {"avs_failure": True, "cvc_failure": True},
            **dict.fromkeys(prefixes),
        },
        "dashboard": {"display_name": "Stripe sandbox", "timezone": "Etc/UTC"},
        "invoices": {"default_account_tax_ids": None, "hosted_payment_method_save": None},
        "payments": {
            "statement_descriptor": "STRIPE SANDBOX",
            **dict.fromkeys((*_written("statement_descriptor"), *_written("statement_descriptor_prefix"))),
        },
        "payouts": {
            "debit_negative_balances": True,
            "schedule": {"delay_days": 2, "interval": "daily"},
            "statement_descriptor": None,
        },
        "sepa_debit_payments": {},
    }


def _written(name: str) -> tuple[str, str]:
    return f"{name}_kana", f"{name}_kanji"

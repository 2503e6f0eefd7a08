"""Changing an org's reload settings (docs/reference/http-api.md#settings)."""

from typing import Any

import msgspec

from db.accounts.billing import BillingAccount, lock_billing, read_billing
from db.accounts.billing import change_settings as write_settings
from db.models.errors import OrgError
from db.postgres.engine import transaction
from metering.payments.context import Payments
from metering.payments.errors import InvalidSettingError, PaymentMethodRequiredError
from metering.payments.settling import follow
from metering.rules.payments import MAX_CHARGE_CENTS, MIN_CHARGE_CENTS


class SettingsPatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The settings that a request sends; what it doesn't send stays. A limit of None is no limit."""

    auto_reload_enabled: bool | msgspec.UnsetType = msgspec.UNSET
    auto_reload_minimum_cents: int | msgspec.UnsetType = msgspec.UNSET
    auto_reload_amount_cents: int | msgspec.UnsetType = msgspec.UNSET
    auto_reload_monthly_limit_cents: int | msgspec.UnsetType | None = msgspec.UNSET

    def sent(self) -> dict[str, Any]:
        """What was sent, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not msgspec.UNSET}


def change_settings(payments: Payments, org_id: int, patch: SettingsPatch) -> BillingAccount:
    """Change the settings that were sent, all or none; what follows, happens at once: a reload, or the end of one that waits.

    Raises PaymentMethodRequiredError for enabling without a card, InvalidSettingError.
    """
    values = patch.sent()
    _check(values)
    with transaction(payments.engine) as connection:
        locked = lock_billing(connection, org_id)
        if locked is None:
            raise OrgError(f"there is no org {org_id}")
        change, before = locked
        if values.get("auto_reload_enabled"):
            _require_complete(values, before)
        reloads = write_settings(connection, change, before, values)
        after = read_billing(connection, org_id)
    follow(payments, reloads)
    return after or before


def _check(values: dict[str, Any]) -> None:
    """The ranges. Nobody is charged less than Stripe takes, so an amount can't be set back to 0."""
    for name, lowest, highest in (
        ("auto_reload_minimum_cents", 0, 2**63 - 1),
        ("auto_reload_amount_cents", MIN_CHARGE_CENTS, MAX_CHARGE_CENTS),
        ("auto_reload_monthly_limit_cents", 0, 2**63 - 1),
    ):
        value = values.get(name)
        if value is not None and not lowest <= value <= highest:
            raise InvalidSettingError(name, f"must be a whole number of cents from {lowest} to {highest}")


def _require_complete(values: dict[str, Any], before: BillingAccount) -> None:
    """Whoever enables reloads has a card, and has said at which balance and how much, now or before."""
    if not before.has_payment_method:
        raise PaymentMethodRequiredError(
            "save a card and make it the default before enabling auto-reload: POST /v1/billing/setup-intent,"
            " then /v1/billing/default-payment-method"
        )
    for name, set_before in (
        ("auto_reload_minimum_cents", before.minimum_set),
        ("auto_reload_amount_cents", before.amount_set),
    ):
        if name not in values and not set_before:
            raise InvalidSettingError(name, "is required when enabling auto-reload")

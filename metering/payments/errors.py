"""Why something that was asked of the payments could not be done. The texts are for customers' developers."""


class PaymentError(Exception):
    """A request that can't be done. Nothing was charged by it, unless the subclass says otherwise."""


class PaymentMethodRequiredError(PaymentError):
    """There is no card on file."""


class InvalidPaymentMethodError(PaymentError):
    """The payment method isn't one of this org's."""


class InvalidAmountError(PaymentError):
    """The amount is outside what a top-up may be."""


class InvalidSettingError(PaymentError):
    """A reload setting is missing or can't be. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class IdempotencyConflictError(PaymentError):
    """The `Idempotency-Key` was used before for another request."""


class CardDeclinedError(PaymentError):
    """The card is declined where nothing was to be charged yet. The text bears the bank's reason."""


class ProviderUnavailableError(PaymentError):
    """Stripe can't be asked, or what it did isn't known. The same request may be sent again: it never charges twice."""


class ProviderMisconfiguredError(ProviderUnavailableError):
    """Stripe doesn't take our requests: the same one may be sent again, but is of no use before somebody here has mended that."""


class ProviderRefusedError(PaymentError):
    """Stripe refused what it was asked, and will each time: nothing was done, and somebody here has to look."""


class SignatureError(PaymentError):
    """A webhook that Stripe has not signed, or not lately."""

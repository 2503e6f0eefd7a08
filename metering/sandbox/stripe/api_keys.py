"""The secret keys that the sandbox takes: test keys only, so that a real one can never be sent here by mistake and pass."""

import base64
import binascii
import threading
from collections.abc import Iterable
from typing import Final, NamedTuple

from metering.sandbox.stripe.errors import INVALID_REQUEST, StripeError
from metering.sandbox.stripe.values import new_id

PREFIX: Final = "sk_test_"


def refused(key: str) -> StripeError:
    """401 for a key that isn't, or is no longer, one of the account's."""
    return StripeError(401, INVALID_REQUEST, f"Invalid API Key provided: {key[:8]}{'*' * 8}{key[-4:]}")


class ApiKey(NamedTuple):
    """A key, and the account that it belongs to; None for the first."""

    key: str
    account: str | None = None


class ApiKeys:
    """The keys that are good now."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises ValueError for a key that isn't a test key."""
        self._lock = threading.Lock()
        self._good = [ApiKey(key) for key in keys]
        for key, _ in self._good:
            if not key.startswith(PREFIX):
                raise ValueError(f"The sandbox takes keys that begin with {PREFIX}, and no others.")

    @property
    def current(self) -> str:
        """The newest key of the first account."""
        with self._lock:
            return [key for key, account in self._good if account is None][-1]

    def rotate(self, *, keep_old: bool = False, account: str | None = None) -> str:
        """A new key of an account; its old ones end at once, unless they are kept."""
        key = new_id("sk_test")
        with self._lock:
            kept = [each for each in self._good if keep_old or each.account != account]
            self._good = [*kept, ApiKey(key, account)]
        return key

    def of(self, account: str) -> list[str]:
        """The keys of an account other than the first."""
        with self._lock:
            return [each.key for each in self._good if each.account == account]

    def set_others(self, others: Iterable[ApiKey]) -> None:
        """Let these be the keys of all accounts but the first."""
        with self._lock:
            self._good = [*(each for each in self._good if each.account is None), *others]

    def require(self, authorization: str | None) -> ApiKey:
        """The key in a header `Authorization`, Bearer or Basic, which must be a good one. Raises StripeError 401."""
        key = _key_in(authorization or "")
        if not key:
            raise StripeError(
                401,
                INVALID_REQUEST,
                "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer auth "
                "(e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
            )
        with self._lock:
            found = next((each for each in self._good if each.key == key), None)
        if found is None:
            raise refused(key)
        return found


def _key_in(authorization: str) -> str:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""

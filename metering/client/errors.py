"""What can go wrong, by what to do about it."""

from typing import Final

import redis
from redis.exceptions import (
    AuthorizationError,
    ExternalAuthProviderError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
)

_NOT_NOW: Final = ("MISCONF", "NOREPLICAS", "BUSY", "UNBLOCKED")
"""How the answers begin that pass by themselves, where redis-py has no class for them."""


class TelephonyError(Exception):
    """Redis didn't do what it was asked. Which subclass it is says what to do about it."""

    def __init__(self, message: str, *, pushed: int = 0) -> None:
        super().__init__(message)
        self.pushed = pushed
        """Of push_many(): so many events, counted from the first, were surely pushed."""


class QueueFull(TelephonyError):  # noqa: N818 - says what is the matter
    """Redis is out of memory and takes no events. Keep the event and push it again: room comes as the meter catches up."""


class Unreachable(TelephonyError):  # noqa: N818 - says what is the matter
    """Redis is away, too slow, loading its data or can't write now; that passes.

    It isn't known whether an event arrived: keep it and push it again. A call is billed once, however often it comes.
    """


class Refused(TelephonyError):  # noqa: N818 - says what is the matter
    """Redis won't do it, and waiting won't help: a password, a permission, a key that holds something else.

    Keep the event until the cause is mended.
    """


class SignalsLost(TelephonyError):  # noqa: N818 - says what is the matter
    """The log no longer holds the signal after which to go on, so later ones may be gone as well.

    Start over: signals(), then gate() of every org whose state you keep, then the new signals.
    """


class InvalidField(ValueError):  # noqa: N818 - says what is the matter
    """The program said what can't be right, as in a missing field. It wasn't sent; the same again fails again."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        """The name of the field."""
        self.pushed = 0
        """Of push_many(): so many events, all those before this one, were surely pushed."""

    def __str__(self) -> str:
        return f"{self.args[0]} {self.args[1]}"


def failure_of(error: Exception, meanwhile: str, pushed: int = 0) -> TelephonyError:
    """What redis-py's error means to a telephony program; `meanwhile` is what follows when the trouble passes by itself."""
    said = str(error) or type(error).__name__
    surely = f" The first {pushed} were surely pushed." if pushed else ""
    if isinstance(error, OutOfMemoryError):
        return QueueFull(
            f"Redis is out of memory and takes no events: keep the event and push it when there is room ({said}).{surely}",
            pushed=pushed,
        )
    if isinstance(error, redis.AuthenticationError | AuthorizationError | ExternalAuthProviderError):
        passes = False  # though redis-py counts them among the connection errors
    else:
        passes = isinstance(
            error, redis.ConnectionError | redis.TimeoutError | ReadOnlyError | MasterDownError
        ) or said.startswith(_NOT_NOW)
    if passes:
        return Unreachable(f"Redis is away or can't do it now; {meanwhile} ({said}).{surely}", pushed=pushed)
    return Refused(f"Redis refuses, and waiting won't help ({said}).{surely}", pushed=pushed)


def hold_failure_of(error: Exception, org_id: int, call_id: int) -> TelephonyError:
    """The same where a hold was asked for."""
    said = str(error) or type(error).__name__
    if isinstance(error, OutOfMemoryError):
        return Unreachable(
            f"Redis is out of memory and holds nothing more: whether a call starts is yours to decide ({said})."
        )
    if "Function not found" in said:
        return Unreachable(
            f"Redis has no functions for holds: the jobs load them within seconds, where they run and are of a version that has"
            f" them ({said})."
        )
    return failure_of(error, f"it isn't known whether call {call_id} of org {org_id} is held: ask again")

"""Which parameters Stripe takes, beyond those that the sandbox knows: stripe-python's own annotations say it.

The names of operations are the SDK's: `customers.payment_methods.list` is `StripeClient.v1.customers.payment_methods.list`.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import UnionType
from typing import Any, Final, ForwardRef, NotRequired, Union, get_args, get_origin

from metering.sandbox.stripe.values import Json

_PART: Final = re.compile(r"[^\[\]]+")


def undocumented(operation: str, params: Json) -> str | None:
    """The first of the parameters, as they were sent, that Stripe doesn't know either; None if it takes them all."""
    return _unknown((params_of(operation),), params, "")


def documents_word(operation: str, param: str, word: str) -> bool:
    """Whether `word` is one of those that Stripe takes for a parameter, such as `card[networks][preferred]`."""
    kinds: tuple[Any, ...] = (params_of(operation),)
    for part in _PART.findall(param):
        if not part.isdigit():  # a place in an array, into which `fields_of` looks
            kinds = tuple(each for kind in kinds if is_hash(kind) for each in fields_of(kind).get(part, ()))
    return any("Literal" in str(kind) and word in get_args(kind) for kind in kinds)


def is_hash(kind: Any) -> bool:
    """Whether a kind of parameter is a TypedDict: typing's own, or the one of typing_extensions, which isn't a type of it."""
    return hasattr(kind, "__required_keys__")


@cache
def params_of(operation: str) -> Any:
    """The TypedDict of an operation's parameters."""
    import stripe  # noqa: PLC0415 - only who is refused something waits for it

    service: Any = stripe.StripeClient("sk_test_sandbox").v1
    *path, method = operation.split(".")
    for name in path:
        service = getattr(service, name)
    annotation = inspect.signature(getattr(type(service), method)).parameters["params"].annotation
    (kind,) = [each for each in (annotation, *get_args(annotation)) if isinstance(each, str | ForwardRef)]
    return getattr(import_module("stripe.params"), kind if isinstance(kind, str) else kind.__forward_arg__)


@cache
def fields_of(kind: Any) -> dict[str, tuple[Any, ...]]:
    """The parameters of a TypedDict, each with the kinds that it may be of: of an array, what it may hold."""
    options = import_module("stripe").RequestOptions.__annotations__
    return {
        name: tuple(_kinds_of(hint, kind.__module__))
        for name, hint in kind.__annotations__.items()
        if name not in options
    }


def _kinds_of(hint: Any, module: str) -> Iterator[Any]:
    if isinstance(hint, ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        hint = eval(hint, vars(sys.modules[module]))  # noqa: S307 - it stands in the SDK's source
    if get_origin(hint) in {NotRequired, Union, UnionType, list}:
        for each in get_args(hint):
            yield from _kinds_of(each, module)
    else:
        yield hint


def _unknown(kinds: tuple[Any, ...], value: Any, path: str) -> str | None:
    hashes = [kind for kind in kinds if is_hash(kind)]
    if isinstance(value, list):
        parts = {f"{path}[{index}]": (kinds, each) for index, each in enumerate(value)}
    elif isinstance(value, dict) and hashes:
        known = {name: found for kind in hashes for name, found in fields_of(kind).items()}
        names = {name: f"{path}[{name}]" if path else name for name in value}
        for name, inner in names.items():
            if name not in known:
                return inner
        parts = {names[name]: (known[name], each) for name, each in value.items()}
    else:  # text, or a hash in which all names are the caller's
        return None
    return next((found for inner, part in parts.items() if (found := _unknown(*part, inner))), None)

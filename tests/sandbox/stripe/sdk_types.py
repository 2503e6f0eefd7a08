"""What stripe-python's own annotations say of an answer: which fields it has, of which types, and what may be null.

They are made from Stripe's description of the API. A field is nullable, or may be left out, where they say `Optional`.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, ForwardRef, Literal, Union, get_args, get_origin

import stripe
from stripe._error_object import ErrorObject
from stripe._stripe_object import UntypedStripeObject

CLASSES: dict[str, type] = {
    "account": stripe.Account,
    "balance": stripe.Balance,
    "balance_transaction": stripe.BalanceTransaction,
    "charge": stripe.Charge,
    "customer": stripe.Customer,
    "dispute": stripe.Dispute,
    "error": ErrorObject,
    "event": stripe.Event,
    "payment_intent": stripe.PaymentIntent,
    "payment_method": stripe.PaymentMethod,
    "refund": stripe.Refund,
    "setup_intent": stripe.SetupIntent,
}
"""By what an object calls itself, its class."""


_IMPORT = re.compile(r"from (stripe\.\S+) import \(?\s*(\w+)(?: as (\w+))?")


@cache
def _names(module: str) -> dict[str, Any]:
    """The names that a module's annotations use, those too that are imported for type checkers only."""
    found = {
        shown or name: getattr(import_module(where), name)
        for where, name, shown in _IMPORT.findall(inspect.getsource(sys.modules[module]))
        if ".params" not in where
    }
    return vars(sys.modules[module]) | found


@cache
def fields_of(kind: type) -> dict[str, Any]:
    """The fields that the SDK knows of a class, each with its type."""
    own = [each for each in kind.__mro__ if each.__module__.startswith("stripe.")]
    fields: dict[str, Any] = {}
    for each in reversed(own):
        for name, hint in each.__annotations__.items():
            if not name.startswith("_") and "ClassVar" not in str(hint):
                fields[name] = evaluated(hint, each.__module__)
    return fields


def evaluated(hint: Any, module: str) -> Any:
    """An annotation with its outermost name looked up."""
    if isinstance(hint, ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        return eval(hint, _names(module))  # noqa: S307 - it is the SDK's own source
    return hint


def differences(value: Any, hint: Any, path: str, module: str, seen: list[str]) -> Iterator[str]:
    """Where a value isn't what an annotation says. `seen` takes the path of each field that was compared."""
    hint = evaluated(hint, module)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        yield from _of_union(value, [evaluated(each, module) for each in arguments], path, module, seen)
    elif value is None:
        yield f"{path}: null"
    elif origin is Literal:
        if value not in arguments:
            yield f"{path}: {value!r} is none of {arguments}"
    elif origin is list and isinstance(value, list):
        for each in value:
            yield from differences(each, arguments[0], f"{path}[]", module, seen)
    elif (origin or hint) is stripe.ListObject:
        yield from of_list(value, arguments[0] if arguments else None, path, module, seen)
    else:
        yield from _of_class(value, origin or hint, path, seen)


def _of_class(value: Any, kind: Any, path: str, seen: list[str]) -> Iterator[str]:
    if kind is UntypedStripeObject:
        kind = dict
    if not isinstance(kind, type):
        yield f"{path}: nobody knows what {kind!r} means"
    elif issubclass(kind, stripe.StripeObject):
        yield from of_object(value, kind, path, seen)
    else:
        fits = isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
        if not fits and not (kind is float and type(value) is int):
            yield f"{path}: {value!r} is no {kind.__name__}"


def of_object(value: Any, kind: type, path: str, seen: list[str]) -> Iterator[str]:
    """Where an object isn't what its class says: unknown fields, missing ones, types and nulls."""
    if not isinstance(value, dict):
        yield f"{path}: no {kind.__name__}"
        return
    fields = fields_of(kind)
    for name, part in value.items():
        if name not in fields:
            yield f"{path}.{name}: unknown"
            continue
        seen.append(f"{path}.{name}")
        yield from differences(part, fields[name], f"{path}.{name}", kind.__module__, seen)
    if value.keys() == {"id", "object", "deleted"}:
        return
    for name, hint in fields.items():
        if name not in value and not _nullable(hint):
            yield f"{path}.{name}: missing"


def of_list(value: Any, each: Any, path: str, module: str, seen: list[str]) -> Iterator[str]:
    """Where a page isn't one."""
    if not isinstance(value, dict) or set(value) != {"object", "data", "has_more", "url"}:
        yield f"{path}: no page"
        return
    seen.extend(f"{path}.{name}" for name in value)
    if value["object"] != "list" or not isinstance(value["has_more"], bool):
        yield f"{path}: no page"
    for item in value["data"]:
        kind = CLASSES[item["object"]] if each is None else each
        yield from differences(item, kind, f"{path}.data[]", module, seen)


def _nullable(hint: Any) -> bool:
    return NoneType in get_args(hint)


def _of_union(value: Any, kinds: list[Any], path: str, module: str, seen: list[str]) -> Iterator[str]:
    if value is None:
        if NoneType not in kinds:
            yield f"{path}: null"
        return
    kinds = [each for each in kinds if each is not NoneType]
    words = [each for each in kinds if get_origin(each) is Literal]
    if words and isinstance(value, str):  # sets of words that may grow: `Literal[...] | str`
        kinds = words
    tried: list[tuple[list[str], list[str]]] = []
    for each in kinds:
        compared: list[str] = []
        tried.append((list(differences(value, each, path, module, compared)), compared))
    found, compared = min(tried, key=lambda each: len(each[0]))
    seen.extend(compared)
    yield from found

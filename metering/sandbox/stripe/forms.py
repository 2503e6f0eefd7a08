"""Stripe's form encoding: `metadata[k]=v`, `expand[]=x`, `expand[0]=x`, `created[gte]=1`, nested as deep as it comes."""

import re
from typing import Any, Final
from urllib.parse import parse_qsl

from metering.sandbox.stripe.errors import ValidationError
from metering.sandbox.stripe.values import Json

MAX_FIELDS: Final = 1_000
MAX_DEPTH: Final = 10
_NAME: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART: Final = re.compile(r"\[([^\[\]]*)\]")


def decode_form(text: str) -> Json:
    """The parameters in `text` (a body or a query), still as strings, arrays as lists. Raises ValidationError."""
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise ValidationError("Too many parameters.") from error
    tree: Json = {}
    for name, value in fields:
        matched = _NAME.fullmatch(name)
        if matched is None:
            raise ValidationError(f"Invalid parameter name: {name}", code="parameter_unknown", param=name)
        _put(tree, [matched[1], *_PART.findall(matched[2])], value, name)
    return {key: _with_lists(value) for key, value in tree.items()}


def _put(tree: Json, path: list[str], value: str, name: str) -> None:
    if len(path) > MAX_DEPTH:
        raise ValidationError("Invalid parameter: nested too deep.", param=name)
    at = tree
    for key in path[:-1]:
        at = at.setdefault(key or str(len(at)), {})
        if not isinstance(at, dict):
            raise ValidationError(f"Invalid parameter: {name} is given in two ways.", param=name)
    last = path[-1] or str(len(at))
    if isinstance(at.get(last), dict):
        raise ValidationError(f"Invalid parameter: {name} is given in two ways.", param=name)
    at[last] = value


def _with_lists(value: Any) -> Any:
    """Hashes whose keys count from 0 are the arrays that they were sent as."""
    if not isinstance(value, dict):
        return value
    if list(value) == [str(number) for number in range(len(value))]:
        return [_with_lists(each) for each in value.values()]
    return {key: _with_lists(each) for key, each in value.items()}

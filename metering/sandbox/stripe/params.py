"""What parameters an endpoint takes, and the errors for all others: Stripe refuses what it doesn't know, and so does this."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from metering.sandbox.stripe.errors import UnknownParameterError, UnknownWordError, ValidationError
from metering.sandbox.stripe.values import Json

MAX_METADATA_KEYS: Final = 50
MAX_METADATA_NAME: Final = 40
MAX_METADATA_VALUE: Final = 500

_INTEGER: Final = re.compile(r"-?\d{1,18}")


class Param(Protocol):
    """One kind of parameter."""

    def read(self, value: Any, name: str) -> Any:
        """`value`, as it came in the form, in its own type. Raises ValidationError."""
        ...


def _text(value: Any, name: str, kind: str) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"Invalid {kind}: {name}", param=name)
    return value


@dataclass(frozen=True, slots=True)
class Text:
    """A string. Empty means to unset it, where `unsettable`; it is read as None."""

    max_length: int = 5_000
    unsettable: bool = False

    def read(self, value: Any, name: str) -> str | None:
        """A string, or None to unset."""
        text = _text(value, name, "string")
        if not text and self.unsettable:
            return None
        if not text:
            raise ValidationError(
                f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a parameter; "
                f"however '{name}' cannot be unset. You should remove '{name}' from your request or supply a non-empty value.",
                code="parameter_invalid_empty",
                param=name,
            )
        if len(text) > self.max_length:
            raise ValidationError(
                f"Invalid string: {text[:10]}...{text[-4:]}; must be at most {self.max_length} characters",
                param=name,
            )
        return text


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number."""

    minimum: int | None = None
    maximum: int | None = None

    def read(self, value: Any, name: str) -> int:
        """The number."""
        text = _text(value, name, "integer")
        if not _INTEGER.fullmatch(text):
            raise ValidationError(f"Invalid integer: {text}", code="parameter_invalid_integer", param=name)
        number = int(text)
        for limit, fine, words in (
            (self.minimum, self.minimum is None or number >= self.minimum, "greater"),
            (self.maximum, self.maximum is None or number <= self.maximum, "less"),
        ):
            if not fine:
                raise ValidationError(
                    f"This value must be {words} than or equal to {limit}.",
                    code="parameter_invalid_integer",
                    param=name,
                )
        return number


@dataclass(frozen=True, slots=True)
class Boolean:
    """`true` or `false`; `also` lists words that are taken in place of true."""

    also: tuple[str, ...] = ()

    def read(self, value: Any, name: str) -> bool:
        """The truth."""
        text = _text(value, name, "boolean")
        if text not in {"true", "false", *self.also}:
            raise ValidationError(f"Invalid boolean: {text}", param=name)
        return text != "false"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several words."""

    words: tuple[str, ...]

    def read(self, value: Any, name: str) -> str:
        """The word."""
        text = _text(value, name, "string")
        if text not in self.words:
            raise UnknownWordError(name, text, self.words)
        return text


@dataclass(frozen=True, slots=True)
class Array:
    """A list of the same kind."""

    each: Param

    def read(self, value: Any, name: str) -> list[Any]:
        """The list, in order."""
        if not isinstance(value, list):
            raise ValidationError("Invalid array", param=name)
        return [self.each.read(item, f"{name}[{index}]") for index, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class Gone:
    """A parameter of earlier versions of the API, refused with a code and a message of its own."""

    code: str
    message: str

    def read(self, value: Any, name: str) -> None:  # noqa: ARG002
        """Never returns."""
        raise ValidationError(self.message, code=self.code, param=name)


@dataclass(frozen=True, slots=True)
class Metadata:
    """Text by text; an empty value removes its key, and is read as None."""

    def read(self, value: Any, name: str) -> dict[str, str | None]:
        """What to set and, as None, what to remove. An empty string in place of the hash removes all: read as {}."""
        if value == "":
            return {}
        if isinstance(value, list):  # keys that count from 0
            value = {str(index): each for index, each in enumerate(value)}
        if not isinstance(value, dict):
            raise ValidationError("Invalid hash", param=name)
        if len(value) > MAX_METADATA_KEYS:
            raise ValidationError(f"Metadata can have at most {MAX_METADATA_KEYS} keys.", param=name)
        for key, text in value.items():
            if len(key) > MAX_METADATA_NAME or not isinstance(text, str) or len(text) > MAX_METADATA_VALUE:
                raise ValidationError(
                    f"Metadata keys have at most {MAX_METADATA_NAME} characters, values at most {MAX_METADATA_VALUE}.",
                    param=f"{name}[{key}]",
                )
        return {key: text or None for key, text in value.items()}


@dataclass(frozen=True, slots=True)
class Hash:
    """Named parameters, of which `required` must be there."""

    fields: Mapping[str, Param]
    required: frozenset[str] = frozenset()

    def read(self, value: Any, name: str) -> Json:
        """Those that were given."""
        if not isinstance(value, dict):
            raise ValidationError("Invalid hash", param=name or None)
        read: Json = {}
        for key, each in value.items():
            inner = f"{name}[{key}]" if name else key
            if key not in self.fields:
                raise UnknownParameterError(inner)
            read[key] = self.fields[key].read(each, inner)
        for key in sorted(self.required - read.keys()):
            inner = f"{name}[{key}]" if name else key
            raise ValidationError(f"Missing required param: {inner}.", code="parameter_missing", param=inner)
        return read


@dataclass(frozen=True, slots=True)
class Range:
    """A time, exactly or as `[gt]`, `[gte]`, `[lt]`, `[lte]`; read as those four names, an exact one as both `gte` and `lte`."""

    bounds: Hash = field(
        default_factory=lambda: Hash({bound: Integer() for bound in ("gt", "gte", "lt", "lte")})
    )

    def read(self, value: Any, name: str) -> dict[str, int]:
        """The bounds that were given."""
        if isinstance(value, dict):
            return self.bounds.read(value, name)
        exact = Integer().read(value, name)
        return {"gte": exact, "lte": exact}


EXPAND: Final[dict[str, Param]] = {"expand": Array(Text())}
PAGING: Final[dict[str, Param]] = {
    **EXPAND,
    "limit": Integer(1, 100),
    "starting_after": Text(),
    "ending_before": Text(),
}
LISTING: Final[dict[str, Param]] = {**PAGING, "created": Range()}


def changed_metadata(held: Mapping[str, str], change: Mapping[str, str | None]) -> dict[str, str]:
    """An object's metadata after `change`: keys are set or removed one by one, and an empty change removes them all."""
    if not change:
        return {}
    merged = {**held, **change}
    return {key: value for key, value in merged.items() if value is not None}

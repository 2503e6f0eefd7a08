"""docker-compose.yml as Compose reads it, as far as the file goes: merge keys, and variables put in."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
OURS: Final = ("migrate", "operator", "meter", "jobs", "api")
SERVERS: Final = ("postgres", "valkey")
DEMO: Final = ("stripe", "demo")
"""Those of the profile `demo`."""
KEEPER: Final = "secrets"
"""What hands out the secrets."""
TO_AN_END: Final = ("migrate", "operator")
"""Those that do one thing and end."""
MONITORING: Final = ("prometheus", "grafana")
"""Those of the profile of that name."""
ROLES: Final = ("meter", "jobs", "api")
CHARGING: Final = ("jobs", "api")
"""Those that talk to Stripe."""
METRICS_PORT: Final = 9100
HTTP_PORT: Final = 8000

# $$, $NAME, or ${NAME} with an operator and its operand; operands hold no further variables here.
_REFERENCE: Final = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>\w+)|\{(?P<name>\w+)(?:(?P<operator>:?[-?+])(?P<operand>[^${}]*))?\})"
)


class UnsetVariable(Exception):  # noqa: N818 - what Compose refuses to start for
    """A required variable is unset or empty."""


def compose_file() -> dict[str, Any]:
    """The file, with variables as they stand in it."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return parsed


def composed(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file as Compose would start it with `variables`. Raises UnsetVariable."""
    filled_in: dict[str, Any] = _interpolated(compose_file(), variables)
    return filled_in


def secrets_file(variables: Mapping[str, str]) -> str:
    """What the service that hands the secrets out is given."""
    text: str = composed(variables)["configs"][KEEPER]["content"]
    return text


def references(value: Any) -> Iterator[tuple[str, str, str]]:
    """Each variable that is referred to in `value`, its operator and its operand."""
    for text in _texts(value):
        for match in _REFERENCE.finditer(text):
            if not match["escaped"]:
                yield match["name"] or match["plain"], match["operator"] or "", match["operand"] or ""


def environment_file(path: Path) -> dict[str, str]:
    """The variables in a file like .env, those commented out left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def duration_s(text: str) -> int:
    """A duration of Compose's in seconds, of the one form that we use."""
    assert re.fullmatch(r"[0-9]+s", text), text
    return int(text.removesuffix("s"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [_interpolated(each, variables) for each in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _resolve(match, variables), value)
    return value


def _resolve(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "$"
    name = match["name"] or match["plain"]
    value, operator = variables.get(name, ""), match["operator"] or ""
    if operator == ":?" and not value:
        raise UnsetVariable(f"{name}: {match['operand']}")
    if operator == ":-" and not value:
        return match["operand"]
    assert operator in {"", ":?", ":-"}, f"{match[0]}: not an operator that these tests know"
    return value

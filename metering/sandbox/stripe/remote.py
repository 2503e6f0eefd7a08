"""The controls for other processes: `POST /_sandbox/<name>` with the arguments as a JSON object, `GET` where there are none."""

import inspect
from collections.abc import Callable
from functools import cache
from http.client import HTTPConnection
from typing import Any, Final, get_type_hints
from urllib.parse import urlsplit

import msgspec
import structlog

from metering.sandbox.stripe.answering import Answer, Request
from metering.sandbox.stripe.controls import Controls
from metering.sandbox.stripe.errors import StripeError

PREFIX: Final = "/_sandbox/"

CONTROLS: Final = frozenset(
    name for name, _ in inspect.getmembers(Controls, inspect.isfunction) if not name.startswith("_")
)
"""The names there are."""

TIMEOUT_S: Final = 60.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ControlError(Exception):
    """A control that could not be done. The text says why."""


def answer_control(controls: Controls, request: Request) -> Answer:
    """Do what a request to `/_sandbox/` asks for: 200 with the result, 400 with why not, 404 for an unknown control."""
    name = request.path.removeprefix(PREFIX)
    if name not in CONTROLS:
        return _problem(404, f"There is no control {name!r}; there are: {', '.join(sorted(CONTROLS))}.")
    try:
        arguments = msgspec.json.decode(request.body or "{}", type=_arguments_of(name))
        result = getattr(controls, name)(**msgspec.structs.asdict(arguments))
    except StripeError as error:
        return _problem(400, str(error))
    except (msgspec.DecodeError, ValueError) as error:
        return _problem(400, f"{name}: {error}")
    except Exception as error:
        log.exception("a control of the Stripe sandbox failed", control=name)
        return _problem(500, f"{name}: {error!r}")
    return Answer(200, msgspec.json.encode({"result": result}))


def control(url: str, name: str, /, **arguments: Any) -> Any:
    """Do a control of the sandbox at `url`, another process's. Raises ControlError, or OSError where nobody listens."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", PREFIX + name, msgspec.json.encode(arguments))
        answer = connection.getresponse()
        body = msgspec.json.decode(answer.read())
    finally:
        connection.close()
    if answer.status != 200:  # noqa: PLR2004
        raise ControlError(body["error"])
    return body["result"]


def _problem(status: int, text: str) -> Answer:
    return Answer(status, msgspec.json.encode({"error": text}))


@cache
def _arguments_of(name: str) -> type[msgspec.Struct]:
    """The arguments of a control, as msgspec checks them: the method's own signature."""
    method: Callable[..., Any] = getattr(Controls, name)
    hints = get_type_hints(method)
    fields: list[Any] = []
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        kind = hints[parameter.name]
        has_default = parameter.default is not inspect.Parameter.empty
        fields.append((parameter.name, kind, parameter.default) if has_default else (parameter.name, kind))
    return msgspec.defstruct(name, fields, forbid_unknown_fields=True, kw_only=True)

"""Parameters in paths and queries, taken at their word."""

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BeforeValidator

from metering.api.errors import InvalidField, InvalidRequestError

MAX_NAMED: Final = 10
"""How many wrong parameters are named in one answer."""
MAX_NAME_CHARS: Final = 64
"""How much of a wrong one's name is told: a client may make up any."""

_WHOLE_NUMBER: Final = re.compile("-?[0-9]{1,19}", re.ASCII)


def _digits(value: Any) -> Any:
    """pydantic would also take `+5`, ` 5`, `5.0` and `5_0`."""
    if isinstance(value, str) and not _WHOLE_NUMBER.fullmatch(value):
        raise ValueError("must be a whole number")
    return value


whole_number: Final = BeforeValidator(_digits)


def plain_query(who: Callable[..., Any]) -> Any:
    """A route's dependency: its query may hold the route's own parameters, each once, and nothing else.

    A misspelt filter that is passed over would be answered with everything, and of one that is given twice nobody could say which
    counts. It asks for `who` first: whoever isn't known is told nothing but that.
    """

    async def check(request: Request, _: Annotated[Any, Depends(who)]) -> None:
        names = request.query_params.keys()
        if not names:
            return
        known = _parameters(request.scope["route"])
        problems = [InvalidField(_shown(name), _unknown(name, known)) for name in names if name not in known]
        problems += [
            InvalidField(name, "must be given once")
            for name in known
            if len(request.query_params.getlist(name)) > 1
        ]
        if problems:
            raise InvalidRequestError(*problems[:MAX_NAMED])

    return Depends(check)


def _parameters(route: APIRoute) -> list[str]:
    """The names of a route's query parameters, as it declares them."""

    def of(dependant: Dependant) -> list[str]:
        own = [each.alias for each in dependant.query_params]
        return own + [name for each in dependant.dependencies for name in of(each)]

    return list(dict.fromkeys(of(route.dependant)))


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return "is not a known parameter: this takes none"
    meant = get_close_matches(_shown(name), known, n=1)
    if meant:
        return f"is not a known parameter: did you mean {meant[0]}?"
    return f"is not a known parameter: known are {', '.join(known)}"


def _shown(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else f"{name[:MAX_NAME_CHARS]}..."

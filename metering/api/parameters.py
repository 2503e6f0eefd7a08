"""Parameters in paths and queries, taken at their word."""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import Request
from pydantic import BeforeValidator

from metering.api.problems import FieldProblem, InvalidRequestError

_WHOLE_NUMBER: Final = re.compile("-?[0-9]{1,19}", re.ASCII)


def _digits(value: Any) -> Any:
    """pydantic would also take `+5`, ` 5`, `5.0` and `5_0`."""
    if isinstance(value, str) and not _WHOLE_NUMBER.fullmatch(value):
        raise ValueError("must be a whole number")
    return value


whole_number: Final = BeforeValidator(_digits)


def given_once(*names: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses a parameter which is given twice: nobody could say which one counts."""

    async def check(request: Request) -> None:
        repeated = [name for name in names if len(request.query_params.getlist(name)) > 1]
        if repeated:
            raise InvalidRequestError(*(FieldProblem(name, "must be given once") for name in repeated))

    return check

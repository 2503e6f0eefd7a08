"""The API's description, as OpenAPI: what the framework makes of the routes, without what isn't so."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from metering.api.responses import MAX_INT

SUMMARY: Final = "Balances, top-ups, automatic reloads, and whether a call may start."
DESCRIPTION: Final = """
Each organization carries a prepaid USD balance. Completed calls are debited; top-ups and automatic reloads credit it. While it is
at 0.00 or below, new calls are refused: `balance_exhausted`.

Send your API key with each request: `Authorization: Bearer sk_live_...`. Amounts are whole US cents. Times are UTC.

Errors have one shape: `{"detail": "for people", "code": "for_programs"}`; bad input also names the fields, `errors`. Fields and
query parameters that aren't known are refused.

Each answer has a header `X-Request-Id`: name it when you ask about a request. It is your own, where you send one of 8 to 64
letters, digits, `.`, `_` and `-`.
"""
FRAMEWORKS_ERRORS: Final = frozenset({"HTTPValidationError", "ValidationError"})


def describe(app: FastAPI, routers: Sequence[APIRouter]) -> Callable[[], dict[str, Any]]:
    """The function that gives the document of `app`, made once from the routes of `routers`."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                summary=SUMMARY,
                description=DESCRIPTION.strip(),
                routes=app.routes,
            )
            for router in routers:
                for route in router.routes:
                    if isinstance(route, APIRoute):
                        _mend_route(made, route)
            _forget_frameworks_errors(made)
            app.openapi_schema = _whole_numbers(made)
        return app.openapi_schema

    return document


def _mend_route(document: dict[str, Any], route: APIRoute) -> None:
    """Bring in again what the framework drops, nulls in examples and exact bounds, and drop what isn't so."""
    for method in route.methods or ():
        operation = document["paths"][route.path_format][method.lower()]
        if "requestBody" in (route.openapi_extra or {}):
            operation["requestBody"] = deepcopy((route.openapi_extra or {})["requestBody"])
            for content in operation["requestBody"]["content"].values():
                _forget_defaults(content["schema"])
        for status, answer in route.responses.items():
            operation["responses"][str(status)]["content"] = {
                kind: {
                    **operation["responses"][str(status)]["content"][kind],
                    "examples": content["examples"],
                }
                for kind, content in answer["content"].items()
            }
        for parameter in operation.get("parameters", []):
            parameter["schema"] = _without_null(parameter["schema"])


def _forget_frameworks_errors(document: dict[str, Any]) -> None:
    """The framework adds its own shape wherever there are parameters; ours is 400."""
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    schemas = document["components"]["schemas"]
    for name in FRAMEWORKS_ERRORS & schemas.keys():
        del schemas[name]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out, never null."""
    kinds = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if len(kinds) == 1:
        rest = {name: value for name, value in schema.items() if name != "anyOf"}
        return {**kinds[0], **rest}
    return {**schema, "anyOf": kinds} if kinds else schema


def _forget_defaults(schema: dict[str, Any]) -> None:
    """What isn't sent stays as it is: no value stands for it."""
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


def _whole_numbers(value: Any) -> Any:
    """The framework writes bounds as floats; the largest integer isn't one."""
    if isinstance(value, dict):
        return {name: _whole_numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(each) for each in value]
    return min(int(value), MAX_INT) if isinstance(value, float) and value.is_integer() else value

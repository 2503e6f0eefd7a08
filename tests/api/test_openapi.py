"""The API's description: every answer with its schema and an example, and nothing that isn't so."""

import re
from typing import Any

import jsonschema_rs
import pytest

from metering.api.errors import TABLE
from tests.api.site import Site

ENDPOINTS = {
    ("get", "/v1/billing"),
    ("patch", "/v1/billing"),
    ("post", "/v1/billing/top-up"),
    ("post", "/v1/billing/setup-intent"),
    ("post", "/v1/billing/default-payment-method"),
    ("get", "/v1/billing/transactions"),
    ("get", "/v1/gate/{org_id}"),
    ("get", "/v1/calls"),
    ("post", "/v1/calls"),
    ("post", "/v1/calls/{call_id}/renew"),
    ("delete", "/v1/calls/{call_id}"),
    ("post", "/v1/calls/completed"),
    ("post", "/v1/stripe/webhook"),
    ("get", "/v1/healthz"),
    ("get", "/readyz"),
}


@pytest.fixture
def document(site: Site) -> Any:
    response = site.http.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def operations(document: Any) -> dict[tuple[str, str], Any]:
    return {
        (method, path): each
        for path, methods in document["paths"].items()
        for method, each in methods.items()
    }


def contents(document: Any) -> list[tuple[str, Any]]:
    """Every body that goes out or comes in."""
    found = []
    for (method, path), operation in operations(document).items():
        if "requestBody" in operation:
            found.append((f"{method} {path}", operation["requestBody"]["content"]))
        for status, response in operation["responses"].items():
            assert response["description"], (method, path, status)
            found.append((f"{method} {path} {status}", response["content"]))
    return found


def test_every_endpoint_is_described(document: Any) -> None:
    assert set(operations(document)) == ENDPOINTS


def test_every_body_has_a_schema_and_examples_that_fit_it(document: Any) -> None:
    bodies = contents(document)
    assert len(bodies) > 50
    for where, content in bodies:
        assert set(content) == {"application/json"}, where
        (body,) = content.values()
        schema = {**body["schema"], "components": document["components"]}
        examples = [each["value"] for each in body.get("examples", {}).values()] or [body["example"]]
        assert examples, where
        for example in examples:
            jsonschema_rs.validate(schema, example)


def test_every_error_that_a_client_may_be_told_of_is_described(document: Any) -> None:
    described = {
        (int(status), name)
        for operation in operations(document).values()
        for status, response in operation["responses"].items()
        for name in response["content"]["application/json"]["examples"]
        if int(status) >= 400
    }
    told = {(int(status), code) for status, code in TABLE.values()}
    others = {
        (402, "card_declined"),
        (402, "authentication_required"),
        (402, "balance_exhausted"),
        (402, "insufficient_balance"),
        (409, "call_ended"),
        (429, "too_many_calls"),
        (403, "org_suspended"),
        (503, "queue_full"),
    }
    assert described == told | others | {(500, "internal_error"), (503, "not_ready")}


def test_nothing_of_the_framework_s_own_errors_is_left(document: Any) -> None:
    assert "ValidationError" not in str(document)
    for (method, path), operation in operations(document).items():
        if "422" in operation["responses"]:
            assert (method, path) in {("patch", "/v1/billing"), ("post", "/v1/billing/top-up")}


def test_who_may_ask_is_described(document: Any) -> None:
    for (method, path), operation in operations(document).items():
        names = {name for scheme in operation.get("security", []) for name in scheme}
        if path.startswith("/v1/billing"):
            assert names == {"api_key"}, (method, path)
        elif path.startswith("/v1/gate") or (method, path) == ("get", "/v1/calls"):
            assert names == {"api_key", "telephony_token"}
        elif path.startswith("/v1/calls"):
            assert names == {"telephony_token"}
        else:
            assert names == set(), (method, path)


def test_bounds_are_whole_numbers(document: Any) -> None:
    bounds = re.findall(r"'(?:minimum|maximum)': ([^,}]+)", str(document))
    assert len(bounds) > 10
    assert all(re.fullmatch(r"\d+", each) for each in bounds), bounds
    assert str(2**63 - 1) in bounds


def test_the_documentation_needs_nobody_else(site: Site) -> None:
    page = site.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for _, path in ENDPOINTS:
        assert path in page.text
    assert re.findall(r"""(?:src|href|action)\s*=\s*["'](?!#|/openapi\.json)([^"']*)""", page.text) == []
    assert "script" not in page.headers["content-security-policy"]

"""Bad input for every field of every endpoint: always the contract's shape, and nothing is changed or charged."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.api.site import Site, assert_problem

JSON: Final = {"Content-Type": "application/json"}
TOO_LARGE: Final = b'{"amount_cents": 10000, "padding": "' + b"x" * 1_000_000 + b'"}'

NO_INTEGERS: Final = [
    "null",
    "true",
    "false",
    "1000.0",
    "1000.5",
    "1e3",
    '"1000"',
    '""',
    '"x"',
    "[]",
    "[1000]",
    "{}",
    "NaN",
]
NO_CENTS: Final = [*NO_INTEGERS, "-1", "9223372036854775808", "-9223372036854775809", "1" * 400]
NO_BOOLEANS: Final = ["null", "0", "1", '"true"', '""', "1.0", "[]", "{}"]
NO_METHODS: Final = [
    "null",
    "true",
    "1",
    "1.5",
    '""',
    '" "',
    '"pm abc"',
    '"pm/../x"',
    '"pm_\\u0000"',
    '"pm_é"',
    "[]",
    "{}",
    *(f'"{"x" * 256}"', '"\\ud800"', '"pm_abc\\n"'),
]

PATCH: Final = ("PATCH", "/v1/billing")
TOP_UP: Final = ("POST", "/v1/billing/top-up")
DEFAULT: Final = ("POST", "/v1/billing/default-payment-method")
SETUP: Final = ("POST", "/v1/billing/setup-intent")

BAD_FIELDS: Final = {
    (PATCH, "auto_reload_enabled"): NO_BOOLEANS,
    (PATCH, "auto_reload_minimum_cents"): NO_CENTS,
    (PATCH, "auto_reload_amount_cents"): [*NO_CENTS, "0", "49", "100000000"],
    (PATCH, "auto_reload_monthly_limit_cents"): [value for value in NO_CENTS if value != "null"],
    (TOP_UP, "payment_method_id"): NO_METHODS,
    (DEFAULT, "payment_method_id"): NO_METHODS,
}
NO_OBJECTS: Final = [
    "",
    " ",
    "{",
    "null",
    "true",
    "1",
    '"x"',
    "[]",
    "[{}]",
    "{'amount_cents': 1}",
    '{"a":1}{"b":2}',
    "\ufeff{}",
    "\0",
    *("[" * 10_000, '{"a":' * 10_000),
]


@pytest.fixture(scope="module")
def site(standing_site: Site) -> Iterator[Site]:
    """Org 1 has a card and settings, so that what is refused would else have been done; in the end nothing was."""
    standing_site.empty()
    standing_site.world.save_card()
    standing_site.world.settings(minimum_cents=1_000, amount_cents=5_000, monthly_limit_cents=50_000)
    before, asked = standing_site.world.account(), standing_site.world.sandbox.totals().asked
    yield standing_site
    assert standing_site.world.account() == before
    assert standing_site.world.sandbox.totals().asked == asked
    assert standing_site.world.attempts() == []


@pytest.mark.parametrize(
    ("endpoint", "field"),
    BAD_FIELDS,
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
def test_bad_fields(site: Site, endpoint: tuple[str, str], field: str) -> None:
    with_others = '"amount_cents": 10000, ' if endpoint == TOP_UP else ""
    for value in BAD_FIELDS[endpoint, field]:
        body = f'{{{with_others}"{field}": {value}}}'.encode()
        response = site.ask(*endpoint, content=body, headers=JSON)
        if value == "NaN" or "\\ud800" in value:  # no JSON in the first place, for some parsers
            assert_problem(response, 400, "invalid_request")
        else:
            assert_problem(response, 400, "invalid_request", field)


def test_whatever_is_wrong_with_the_amount_of_a_top_up_is_an_invalid_amount(site: Site) -> None:
    for value in [*NO_CENTS, "0", "1", "499", "100000000", "9223372036854775807"]:
        if value != "NaN":
            response = site.ask(*TOP_UP, content=f'{{"amount_cents": {value}}}'.encode(), headers=JSON)
            assert set(assert_problem(response, 400, "invalid_amount")) == {"detail", "code"}
    for body in [{}, {"payment_method_id": 1}, {"amount_cents": "1", "unknown": 1}]:
        assert_problem(site.ask(*TOP_UP, json=body), 400, "invalid_amount")


def test_a_missing_payment_method_is_named(site: Site) -> None:
    body = assert_problem(site.ask(*DEFAULT, json={}), 400, "invalid_request", "payment_method_id")
    assert body["errors"] == [{"field": "payment_method_id", "message": "is required"}]


@pytest.mark.parametrize("endpoint", [PATCH, TOP_UP, DEFAULT, SETUP], ids="-".join)
def test_unknown_fields_are_refused(site: Site, endpoint: tuple[str, str]) -> None:
    good: dict[Any, dict[str, Any]] = {
        PATCH: {"auto_reload_minimum_cents": 1},
        TOP_UP: {"amount_cents": 10_000},
        DEFAULT: {"payment_method_id": "pm_abc123"},
        SETUP: {},
    }
    for name in ("unknown", "Amount_Cents", "org_id", "balance_cents", ""):
        response = site.ask(*endpoint, json={**good[endpoint], name: 1})
        assert_problem(response, 400, "invalid_request", name or "body")


@pytest.mark.parametrize("endpoint", [PATCH, TOP_UP, DEFAULT, SETUP], ids="-".join)
def test_what_is_no_json_object_is_refused(site: Site, endpoint: tuple[str, str]) -> None:
    for text in NO_OBJECTS:
        if endpoint == SETUP and not text.strip():
            continue  # it takes no body
        response = site.ask(*endpoint, content=text.encode(), headers=JSON)
        assert_problem(response, 400, "invalid_request", "body")
    assert_problem(
        site.ask(*endpoint, content=b'{"a": "\xff"}', headers=JSON), 400, "invalid_request", "body"
    )


@pytest.mark.parametrize("endpoint", [PATCH, TOP_UP, DEFAULT], ids="-".join)
def test_another_content_type_is_refused(site: Site, endpoint: tuple[str, str]) -> None:
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json", ""]:
        response = site.ask(*endpoint, content=b'{"amount_cents": 10000}', headers={"Content-Type": kind})
        assert_problem(response, 400, "invalid_request", "Content-Type")
    assert_problem(site.ask(*endpoint, content=b"{}"), 400, "invalid_request", "Content-Type")
    multipart = site.ask(*endpoint, files={"amount_cents": b"10000"})
    assert_problem(multipart, 400, "invalid_request", "Content-Type")


def test_a_charset_beside_the_content_type_is_fine(site: Site) -> None:
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    response = site.ask(*PATCH, content=b'{"auto_reload_minimum_cents": 1000}', headers=kind)
    assert response.status_code == 200


@pytest.mark.parametrize("endpoint", [PATCH, TOP_UP, DEFAULT, SETUP], ids="-".join)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_of_a_megabyte_is_refused(site: Site, endpoint: tuple[str, str], *, chunked: bool) -> None:
    parts = (TOO_LARGE[first : first + 10_000] for first in range(0, len(TOO_LARGE), 10_000))
    response = site.ask(*endpoint, content=parts if chunked else TOO_LARGE, headers=JSON)
    assert_problem(response, 413, "body_too_large")
    assert site.get("/v1/billing").status_code == 200  # on the same connection


def test_a_webhook_is_read_up_to_a_megabyte(site: Site) -> None:
    for size, status, code in [(1_048_576, 400, "invalid_signature"), (1_048_577, 413, "body_too_large")]:
        assert_problem(site.http.post("/v1/stripe/webhook", content=b"x" * size), status, code)


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb", "a\x7f"])
def test_bad_idempotency_keys(site: Site, key: str) -> None:
    headers = {**site.headers(1), "Idempotency-Key": key.encode()}
    response = site.http.post("/v1/billing/top-up", json={"amount_cents": 10_000}, headers=headers)  # type: ignore[arg-type]
    assert_problem(response, 400, "invalid_request", "Idempotency-Key")


def test_two_idempotency_keys(site: Site) -> None:
    headers = [*site.headers(1).items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = site.http.post("/v1/billing/top-up", json={"amount_cents": 10_000}, headers=headers)
    assert_problem(response, 400, "invalid_request", "Idempotency-Key")


NO_NUMBERS: Final = [
    "",
    "x",
    "1.0",
    "1e2",
    "+1",
    " 1",
    "1 ",
    "0x1",
    "1_0",
    "true",
    "null",
    "٣",
    "1\0",
    "9" * 400,
]
BAD_PARAMETERS: Final = {
    "limit": [*NO_NUMBERS, "0", "-1", "201", "9223372036854775808"],
    "offset": [*NO_NUMBERS, "-1", "9223372036854775808"],
    "kind": ["", "DEBIT", "debits", "null", "debit ", "1", "debit\0", "top_up"],
    "start_date": [
        "",
        "yesterday",
        "2026-02-30",
        "2026-04-20T25:00:00Z",
        "1776709506",
        "null",
        "2026-04-20T18:25:06Z\0",
    ],
    "end_date": ["", "tomorrow", "2026-13-01", "2026-04-20T18:25:06+99:00", "x" * 5_000],
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters_of_the_list(site: Site, name: str) -> None:
    for value in BAD_PARAMETERS[name]:
        response = site.get("/v1/billing/transactions", params={name: value})
        assert_problem(response, 400, "invalid_request", name)
    repeated = site.get("/v1/billing/transactions", params=[(name, "1"), (name, "1")])
    assert_problem(repeated, 400, "invalid_request", name)


def test_all_that_is_wrong_is_named_at_once(site: Site) -> None:
    response = site.get("/v1/billing/transactions?limit=0&kind=x&start_date=y")
    assert_problem(response, 400, "invalid_request", "limit", "kind", "start_date")
    assert_problem(
        site.patch(auto_reload_enabled=1, auto_reload_minimum_cents=-1, unknown=None),
        *(400, "invalid_request"),
        *("auto_reload_enabled", "auto_reload_minimum_cents", "unknown"),
    )


@pytest.mark.parametrize(
    "org_id", ["0", "-1", "x", "1.0", "9223372036854775808", "%00", "%F0%9F%92%B8", "1%20"]
)
def test_bad_org_ids_of_the_gate(site: Site, org_id: str) -> None:
    response = site.get(f"/v1/gate/{org_id}")
    assert_problem(response, 400, "invalid_request", "org_id")


@pytest.mark.parametrize(
    "query", ["direction=", "direction=up", "direction=Inbound", "direction=inbound&direction=inbound"]
)
def test_bad_directions_of_the_gate(site: Site, query: str) -> None:
    assert_problem(site.get(f"/v1/gate/1?{query}"), 400, "invalid_request", "direction")


@pytest.mark.parametrize("tier", ["", "bolt", "BOLT", "x" * 5_000, "%00", "%FF"])
def test_unknown_tiers_of_the_gate(site: Site, tier: str) -> None:
    assert_problem(site.get(f"/v1/gate/1?tier={tier}"), 400, "invalid_request", "tier")


def test_nobody_learns_more_than_that_he_is_not_known(site: Site) -> None:
    """Without a key not even bad input is named, nor is a body read."""
    for method, path in [
        PATCH,
        TOP_UP,
        DEFAULT,
        SETUP,
        ("GET", "/v1/gate/x"),
        ("GET", "/v1/billing/transactions?limit=x"),
    ]:
        response = site.http.request(method, path, content=b"{", headers=JSON)
        assert_problem(response, 401, "unauthenticated")
    assert_problem(
        site.http.post("/v1/billing/top-up", content=TOO_LARGE, headers=JSON), 401, "unauthenticated"
    )


def test_the_nothing_that_is_not_there(site: Site) -> None:
    for path in [
        "/",
        "/v1",
        "/v1/billing/",
        "/v1/billing/top-up/",
        "/v1/Billing",
        "/v1/gate",
        "/v1/gate/1/x",
        "//v1/billing",
        "/metrics",
    ]:
        assert_problem(site.get(path), 404, "not_found")
    for method, path, allowed in [
        ("DELETE", "/v1/billing", "GET, PATCH"),
        ("POST", "/v1/billing", "GET, PATCH"),
        ("GET", "/v1/billing/top-up", "POST"),
        ("PUT", "/v1/gate/1", "GET"),
        ("TRACE", "/v1/healthz", "GET"),
        ("MADEUP", "/readyz", "GET"),
    ]:
        response = site.ask(method, path)
        assert_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed


def test_json_of_any_depth_or_length_of_number_is_only_bad_input(site: Site) -> None:
    deep = json.dumps({"payment_method_id": "x"})[:-1] + ', "y": ' + "[" * 5_000 + "]" * 5_000 + "}"
    assert_problem(site.ask(*DEFAULT, content=deep.encode(), headers=JSON), 400, "invalid_request")

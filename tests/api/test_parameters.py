"""A parameter that isn't known is refused and named: passed over, a misspelt filter would be answered with everything."""

from typing import Any

import pytest

from tests.api.site import TELEPHONY_TOKEN, Site, assert_problem
from tests.api.test_orgs_apart import REQUESTS

LIST = "/v1/billing/transactions"


@pytest.mark.parametrize(("method", "path", "request_"), REQUESTS)
@pytest.mark.parametrize(
    "query", ["strat_date=2026-04-21", "x", "limit=1&=", "Limit=1", "direction%20=inbound"]
)
def test_no_endpoint_passes_over_what_it_does_not_know(
    site: Site, method: str, path: str, request_: Any, query: str
) -> None:
    site.world.save_card()
    name = {"strat_date=2026-04-21": "strat_date", "limit=1&=": "", "direction%20=inbound": "direction "}.get(
        query, query.partition("=")[0]
    )
    response = site.ask(method, f"{path}?{query}", **request_)
    body = assert_problem(response, 400, "invalid_request")
    assert name in {each["field"] for each in body["errors"]}
    assert site.world.attempts() == []
    assert site.get("/v1/billing").json()["auto_reload_minimum_cents"] == 0


def test_the_likely_one_is_proposed(site: Site) -> None:
    errors = site.get(f"{LIST}?strat_date=2026-04-21&zzz=1").json()["errors"]
    assert errors == [
        {"field": "strat_date", "message": "is not a known parameter: did you mean start_date?"},
        {
            "field": "zzz",
            "message": "is not a known parameter: known are limit, offset, before_id, kind, call_id, start_date, end_date",
        },
    ]
    errors = site.get("/v1/billing?limit=1").json()["errors"]
    assert errors == [{"field": "limit", "message": "is not a known parameter: this takes none"}]


def test_telephony_s_gate_too(site: Site) -> None:
    headers = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
    response = site.http.get("/v1/gate/1?teir=bolt", headers=headers)
    assert_problem(response, 400, "invalid_request", "teir")
    assert "did you mean tier?" in response.text


def test_whoever_is_not_known_is_told_nothing_but_that(site: Site) -> None:
    for path in (LIST, "/v1/billing", "/v1/gate/1"):
        assert_problem(site.http.get(f"{path}?strat_date=1"), 401, "unauthenticated")


def test_probes_and_pages_for_people_may_be_asked_with_anything(site: Site) -> None:
    for path in ("/v1/healthz", "/readyz", "/docs", "/openapi.json"):
        assert site.http.get(f"{path}?t=123").status_code == 200


def test_what_is_told_of_names_is_bounded(site: Site) -> None:
    query = "&".join(f"{'x' * 5_000}{number}=1" for number in range(12))
    response = site.get(f"{LIST}?{query}")
    assert_problem(response, 400, "invalid_request")
    assert len(response.content) < 5_000

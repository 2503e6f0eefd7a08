"""What a run's numbers are made from: percentiles, stretches, spreads, the traffic itself."""

import json
from collections import Counter

import pytest

from metering.trials.bench.backlog import Drained, Mark
from metering.trials.bench.generate import LoadOrder, probes
from metering.trials.bench.long_runs import stretches
from metering.trials.bench.percentiles import Percentiles, percentiles
from metering.trials.bench.rate import Rate, Spread, spread
from metering.trials.bench.sizes import DebitCost, Footprint, debit_cost
from metering.trials.event_generator import Traffic, events


def test_a_percentile_is_one_of_the_latencies_that_were_measured() -> None:
    assert percentiles(number / 1_000 for number in range(200, 0, -1)) == Percentiles(
        100.0, 198.0, 200.0, 200
    )
    assert percentiles([0.002]) == Percentiles(2.0, 2.0, 2.0, 1)


def test_no_latencies_have_no_percentiles() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentiles([])


def test_a_spread_is_of_rates_not_of_times() -> None:
    assert spread([Rate(100, 1.0), Rate(100, 2.0), Rate(100, 4.0)]) == Spread(50.0, 25.0, 100.0, 3)


def test_a_stretch_costs_what_its_own_events_cost() -> None:
    marks = [Mark(0, 0.0), Mark(3, 0.5), Mark(10, 1.0), Mark(50, 5.0), Mark(60, 10.0), Mark(100, 50.0)]
    run = Drained(Rate(100, 50.0), marks, None, None)
    found = stretches(run)
    assert [stretch.up_to_events for stretch in found] == [3, 10, 50, 60, 100]
    assert [stretch.us_per_event for stretch in found] == pytest.approx([0.5e6 / 3, 0.5e6 / 7, 1e5, 5e5, 1e6])


def test_a_debit_costs_what_came_between_two_looks() -> None:
    before = Footprint(100, 1_000, 500, 9_000, 50, 40)
    after = Footprint(300, 5_000, 1_500, 29_000, 60, 45)
    assert debit_cost(before, after) == DebitCost(200, 20.0, 5.0, 100.0, 0.5)


def orgs_of(traffic: Traffic) -> Counter[int]:
    load = events(20_000, orgs=100, first_call_id=1, seed=7, traffic=traffic)
    return Counter(json.loads(event)["org_id"] for event in load)


def test_traffic_is_spread_as_it_says() -> None:
    uniform, zipf, single = (orgs_of(traffic) for traffic in Traffic)
    assert set(uniform) == set(zipf) == set(range(1, 101))
    assert max(uniform.values()) < 2 * min(uniform.values())
    assert zipf[1] == pytest.approx(2 * zipf[2], rel=0.15)
    assert zipf[1] == pytest.approx(10 * zipf[10], rel=0.3)
    assert single == {1: 20_000}


def test_one_event_in_twenty_repeats_one_before() -> None:
    load = list(events(20_000, orgs=100, first_call_id=1, seed=7))
    assert len(load) - len(set(load)) == pytest.approx(1_000, rel=0.15)


def test_each_probe_is_one_event_of_an_org_of_its_own() -> None:
    order = LoadOrder("", 1_000.0, 35, 1, 10, Traffic.UNIFORM, first_probe=500, probe_every=10)
    assert probes(order) == {500: 5, 501: 15, 502: 25}

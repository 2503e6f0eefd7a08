"""The schedule of faults: the same seed gives the same one, and it holds what a run has to show."""

import itertools
from collections import Counter

from metering.trials.chaos.schedule import (
    BACKUP_BEFORE_S,
    JUMPS_APART_S,
    LASTS_S,
    Fault,
    Schedule,
    make_schedule,
)

ROLES = ("meter-1", "jobs-1", "api")
CLOCKS = ("meter-1", "api")
LINKS = ("meter-1 > postgres", "api > stripe")


def _made(seed: int, duration_s: float = 1_800.0) -> Schedule:
    return make_schedule(seed, duration_s, roles=ROLES, links=LINKS, clocks=CLOCKS)


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    assert _made(1) == _made(1)
    assert _made(1) != _made(2)


def test_a_long_run_has_every_kind_of_fault_many_times_and_every_target() -> None:
    strikes = _made(3).strikes
    kinds = Counter(strike.fault for strike in strikes)
    assert set(kinds) == set(Fault)
    assert min(kinds.values()) >= 5
    assert {strike.target for strike in strikes if strike.fault is Fault.KILL} == set(ROLES)
    assert {strike.target for strike in strikes if strike.fault is Fault.CUT} == set(LINKS)
    assert {strike.target for strike in strikes if strike.fault is Fault.CLOCK_ASTRAY} == set(CLOCKS)


def test_a_short_run_has_one_of_each_kind_of_fault_before_any_comes_twice() -> None:
    for seed in range(20):
        kinds = [strike.fault for strike in _made(seed, 60.0).strikes]
        assert len(set(kinds[: len(Fault)])) == min(len(kinds), len(Fault))


def test_strikes_lie_within_the_run_in_order_and_last_as_long_as_their_kind_may() -> None:
    strikes = _made(4).strikes
    times_s = [strike.at_s for strike in strikes]
    assert times_s == sorted(times_s)
    assert times_s[0] > 0
    assert times_s[-1] < 1_800.0
    for strike in strikes:
        shortest_s, longest_s = LASTS_S[strike.fault]
        assert shortest_s <= strike.lasts_s <= longest_s


def test_every_restore_has_a_backup_before_it_and_no_jump_of_the_clock_in_between() -> None:
    for seed in range(20):
        made = _made(seed)
        jumps_s = [strike.at_s for strike in made.strikes if strike.fault is Fault.CLOCK]
        restores_s = [strike.at_s for strike in made.strikes if strike.fault is Fault.POSTGRES_RESTORED]
        assert len(made.backups_at_s) == len(restores_s)
        for backup_s, restore_s in zip(made.backups_at_s, restores_s, strict=True):
            assert restore_s - BACKUP_BEFORE_S <= backup_s + 0.01 <= restore_s + 0.02
            assert not any(backup_s < jump_s < restore_s for jump_s in jumps_s)
        assert all(later - jump >= JUMPS_APART_S for jump, later in itertools.pairwise(jumps_s))

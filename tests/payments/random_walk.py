"""Random walks of state machines: short ones in every run, long ones on request (CONTRIBUTING.md, "Walk for long")."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


@dataclass(frozen=True, slots=True)
class LongWalk:
    """What is asked of a machine's long walk, by variables: METERING_<NAME>_STEPS, others for each METERING_<NAME>_SEED.

    A failure is told as it was found; METERING_<NAME>_SHRINK=1 looks for a shorter one, which takes minutes.
    """

    steps: int
    seed: int
    shrink: bool

    @classmethod
    def of(cls, name: str) -> "LongWalk":
        """As the environment has it."""
        variable = f"METERING_{name.upper()}_"
        return cls(
            steps=int(os.environ.get(variable + "STEPS", "3000")),
            seed=int(os.environ.get(variable + "SEED", "1")),
            shrink=bool(os.environ.get(variable + "SHRINK")),
        )

    def take(self, walk: Callable[[int], Mapping[str, int]], capsys: pytest.CaptureFixture[str]) -> None:
        """Walk with one seed after another, until `walk` tells of enough `steps` in all."""
        walks, tally = 0, walk(self.seed * 1_000_000)
        while True:
            walks += 1
            with capsys.disabled():
                sys.stdout.write(f"seed {self.seed}, {walks} walks: {dict(sorted(tally.items()))}\n")
                sys.stdout.flush()
            if tally["steps"] >= self.steps:
                return
            tally = walk(self.seed * 1_000_000 + walks)


def take_walk(
    make_machine: Callable[[], RuleBasedStateMachine],
    *,
    examples: int,
    steps_each: int,
    walk_seed: int | None = None,
    shrink: bool = False,
) -> None:
    """Walk at random, the same way for the same seed."""
    run_state_machine_as_test(
        # Its type wants a class; it takes whatever makes a machine, and says so.
        make_machine if walk_seed is None else seed(walk_seed)(make_machine),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps_each,
            database=None,  # each seed walks its own way
            phases=[each for each in Phase if each is not Phase.shrink or shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )

"""The mutants of a run, one after another; to be started by `python -m tests.mutation`, which lends servers to the tests.

mutmut makes the mutants, finds the tests that call each function, and forks a process for each mutant from one that has imported
everything. What is here besides: files are taken in the order given, the tests that killed a mutant's neighbours come first, and
survivors are held against explained.toml. Nothing of the project is imported here: it would be what the tests get.
"""

import argparse
import fcntl
import fnmatch
import sys
import time
from collections import Counter
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Final

from mutmut.__main__ import collect_or_load_stats
from mutmut.configuration import config
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import get_mutant_runner

from tests.mutation.explained import Explained, read_explained
from tests.mutation.failures import CLEAN_FAILURES
from tests.mutation.mutants import Fate, Mutant, all_mutants, keep_exit_code, make_mutants, use_our_programs
from tests.mutation.type_check import refused_by_mypy

REFUSED_BY_MYPY: Final = 37
UNREACHED: Final = 33
"""mutmut's exit codes for what it doesn't run."""


def main() -> int:
    """Give 0 if every mutant that was asked for is dead or explained."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description="Tell which small changes to the code no test notices."
    )
    parser.add_argument(
        "files", nargs="*", help="files or patterns, in the order to take them (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants at a time")
    parser.add_argument(
        "--tests", nargs="+", help="tests to try them with (default: those of pyproject.toml)"
    )
    parser.add_argument("--report", action="store_true", help="run nothing: tell how far earlier runs came")
    asked = parser.parse_args()
    patterns: list[str] = asked.files or config().only_mutate
    explained = read_explained()
    if asked.tests:
        config().pytest_add_cli_args_test_selection = asked.tests
    if not asked.report:
        Path("mutants").mkdir(exist_ok=True)
        lock = Path("mutants/lock").open("w", encoding="utf-8")  # noqa: SIM115 - held to the end of this process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("another run has mutants/ in hand: wait for its end") from None
        use_our_programs(Path(sys.executable).parent)
        set_mutant_under_test("mutant_generation")
        make_mutants(asked.jobs)
        for name in [each for each in sys.modules if each.partition(".")[0] == "tests"]:
            del sys.modules[name]  # pytest is to find the tests beside the mutants
        waiting = [each for each in _chosen(patterns) if not each.fate.dead and explained.why(each) is None]
        if waiting:
            run(waiting, asked.jobs)
    return report(patterns, explained)


def _chosen(patterns: Sequence[str]) -> list[Mutant]:
    """The mutants of the files asked for, in the order in which they were asked for."""
    found: dict[str, Mutant] = {}
    mutants = list(all_mutants())
    for pattern in patterns:
        matching = [each for each in mutants if fnmatch.fnmatch(str(each.path), pattern)]
        if not matching:
            raise SystemExit(f"nothing is mutated in {pattern}: see [tool.mutmut] in pyproject.toml")
        found |= {each.name: each for each in matching}
    return list(found.values())


def run(mutants: Sequence[Mutant], jobs: int) -> None:
    """Find out how each fares: whether mypy refuses it, else whether one of the tests that call its function fails."""
    refused = refused_by_mypy() if any(each.fate is Fate.NOT_RUN for each in mutants) else set()
    runner = get_mutant_runner(jobs)
    failures = Path("mutants") / CLEAN_FAILURES
    failures.unlink(missing_ok=True)
    try:
        collect_or_load_stats(runner)
    finally:
        if failures.exists():
            print(f"failed without any mutant, so none can be tried:\n{failures.read_text(encoding='utf-8')}")
    set_mutant_under_test("")
    runner.startup()
    running: dict[str, Mutant] = {}
    counts = Counter[str]()
    began_s = told_s = time.monotonic()

    def take_result() -> None:
        result = runner.wait_for_result()
        keep_exit_code(running.pop(result.mutant_name), result.exit_code)
        counts["survived" if result.exit_code == 0 else "killed"] += 1

    try:
        for mutant in mutants:
            tests = state().tests_by_mangled_function_name.get(
                mangled_name_from_mutant_name(mutant.name), set()
            )
            if mutant.name in refused or not tests:
                keep_exit_code(mutant, REFUSED_BY_MYPY if mutant.name in refused else UNREACHED)
                counts["refused by mypy" if mutant.name in refused else "unreached"] += 1
                continue
            while not runner.has_capacity():
                take_result()
            took_s = sum(state().duration_by_test.get(test, 0.0) for test in tests)
            limit_s = ceil((took_s + config().timeout_constant) * config().timeout_multiplier * 2)
            running[mutant.name] = mutant
            runner.submit(mutant.name, sorted(tests), limit_s, took_s)
            if time.monotonic() > told_s + 30:
                told_s = time.monotonic()
                done = ", ".join(f"{number} {what}" for what, number in counts.items())
                print(
                    f"{round(told_s - began_s)} s: {done} of {len(mutants)}; now {mutant.function}",
                    flush=True,
                )
        runner.signal_work_complete()
        while running:
            take_result()
    except KeyboardInterrupt:
        runner.stop_all_workers()
    finally:
        runner.shutdown()


def report(patterns: Sequence[str], explained: Explained) -> int:
    """Print a row for each file, every survivor that isn't explained, and the sum; give the exit status."""
    rows: dict[str, Counter[str]] = {}
    used: list[tuple[str, str]] = []
    for mutant in _chosen(patterns):
        row = rows.setdefault(str(mutant.path), Counter())
        if mutant.fate.dead:
            row["killed"] += 1
            row[mutant.fate] += mutant.fate is not Fate.KILLED
        elif mutant.fate is Fate.NOT_RUN:
            row["not run"] += 1
        elif explained.why(mutant) is not None:
            row["explained"] += 1
            used.append((mutant.function, mutant.change()))
        else:
            row["left"] += 1
            print(
                f"\n# {mutant.name}: {mutant.fate}\nfunction = \"{mutant.function}\"\nchanges = ['''{mutant.change()}''']"
            )
    total = Counter[str]()
    columns = ("killed", Fate.KILLED_BY_TYPES, Fate.TIMED_OUT, "explained", "left", "not run")
    print(
        f"\n| file | mutants | killed | by types | by time-out | explained | left | not run |\n|---|{'---|' * 7}"
    )
    for path, row in rows.items():
        mutants = row["killed"] + row["explained"] + row["left"] + row["not run"]
        print(f"| `{path}` | {mutants} | {' | '.join(str(row[column]) for column in columns)} |")
        total += row
        total["mutants"] += mutants
    unused = explained.unused(used, {path: not row["not run"] for path, row in rows.items()})
    for function, change in unused:
        print(f"explained.toml names a change that doesn't survive (any more): {function}: {change}")
    rest = f", {total['not run']} not run" if total["not run"] else ""
    print(
        f"{total['mutants']} mutants, {total['killed']} killed, {total['explained']} explained, {total['left']} left{rest}"
    )
    return 1 if total["left"] or unused else 0


if __name__ == "__main__":
    sys.exit(main())

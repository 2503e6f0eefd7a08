"""Mutants that mypy refuses, as `make check` would refuse the change: nothing need be run for them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from mutmut.mutation.data import MutantLineSpans
from mutmut.utils.format_utils import get_mutant_name

_COMMAND: Final = ("-m", "mypy", "--output=json", "--no-warn-unused-ignores")
_PACKAGES: Final = ("-p", "db", "-p", "metering.rules", "-p", "metering.payments")
_NO_FAULT: Final = frozenset(
    {"comparison-overlap", "has-type", "ignore-without-code", "no-redef", "redundant-expr"}
)
"""What mypy says of mutmut's own lines, and of what is odd but does what it says."""


_ANSWER: Final = Path("mutants/mypy-refused.json")


def refused_by_mypy() -> set[str]:
    """The names of the mutants in which mypy finds a fault; asked again only where one of the files has changed."""
    asked_of = _digest()
    if _ANSWER.exists():
        kept = json.loads(_ANSWER.read_text(encoding="utf-8"))
        if kept["of"] == asked_of:
            return set(kept["refused"])
    refused = _ask_mypy()
    _ANSWER.write_text(json.dumps({"of": asked_of, "refused": sorted(refused)}), encoding="utf-8")
    return refused


def _digest() -> str:
    """Of all that mypy reads."""
    digest = hashlib.sha256()
    for path in sorted(
        each for folder in ("db", "metering") for each in Path("mutants", folder).rglob("*.py")
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _ask_mypy() -> set[str]:
    found = subprocess.run(
        [sys.executable, *_COMMAND, *_PACKAGES], cwd="mutants", capture_output=True, text=True, check=False
    )
    spans: dict[str, MutantLineSpans | None] = {}
    refused: set[str] = set()
    for line in found.stdout.splitlines():
        told = json.loads(line)
        if told["severity"] != "error" or told["code"] in _NO_FAULT:
            continue
        path = told["file"]
        if path not in spans:
            spans[path] = MutantLineSpans.load(path)
        refused |= {get_mutant_name(Path(path), name) for name in _functions_at(spans[path], told["line"])}
    if not refused:
        raise SystemExit(
            f"mypy has refused no mutant, which can't be: {found.stdout[-500:]}{found.stderr[-500:]}"
        )
    return refused


def _functions_at(spans: MutantLineSpans | None, line: int) -> list[str]:
    if spans is None:
        return []
    return [name for name, span in spans.span_by_function_name.items() if span.start <= line <= span.end]

"""Stripe's own example of each object: which fields it has, and of which types."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[4] / "shared" / "data" / "stripe" / "fixtures3.json"


@cache
def examples() -> dict[str, dict[str, Any]]:
    """By what an object calls itself, its example. Skips the test where the file is missing."""
    if not FILE.exists():
        pytest.skip(f"Stripe's own examples are not there: {FILE}")
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text())["resources"]
    return found


def differences(value: Any, example: Any, path: str, seen: list[str]) -> Iterator[str]:
    """Where a value lacks a field of its example, or has it in another type. `seen` takes each field that was compared.

    What is null in one of them says nothing of the other's type: what may be null, the SDK knows (sdk_types.py).
    """
    stands_for_object = isinstance(value, str) and isinstance(example, dict) and "id" in example
    stands_for_id = isinstance(example, str) and isinstance(value, dict) and "object" in value
    if value is None or example is None or stands_for_object or stands_for_id:
        return
    if type(value) is not type(example):
        yield f"{path}: {value!r} is no {type(example).__name__}"
    elif isinstance(example, dict):
        for name, part in example.items():
            yield from _of_field(value, name, part, f"{path}.{name}", seen)
    elif isinstance(example, list):
        for each in value if example else ():
            yield from differences(each, example[0], f"{path}[]", seen)


def _of_field(value: dict[str, Any], name: str, example: Any, path: str, seen: list[str]) -> Iterator[str]:
    if name not in value:
        yield f"{path}: missing"
        return
    seen.append(path)
    yield from differences(value[name], example, path, seen)

"""Names of Redis keys and schemas: one module makes them, and nothing else writes one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from metering.runtime import names
from metering.runtime.names import (
    BENCH_JOBS,
    JOBS,
    SCHEMA,
    SIGNALS_CHANNEL,
    STREAM,
    gate_key,
    gate_keys,
    org_of_gate,
    table,
)
from tests.luacheck import all_files

ROOT: Final = Path(__file__).parents[2]

MAKES_NAMES: Final = "metering/runtime/names.py"
MAY_WRITE_THEM: Final = (
    MAKES_NAMES,
    "metering/client/keys.py",  # imports none of the rooms; tests/client/test_client.py holds its names against ours
    "db/migrations/versions/",  # tell what was done, and aren't changed
)

KEY_SHAPED: Final = re.compile(r"[a-z_]\w*(:[\w{}$*.-]*)+")
"""A whole text like `calls:completed` or `gate:{}`, where {} stands for what an f-string puts in."""
PUT_TOGETHER: Final = re.compile(r"\{\}(:[\w{}$*.-]*)+")
"""One like `{}:{}`: a name if it begins with one of ours."""
NAMED: Final = re.compile(
    rf"{STREAM}|{SIGNALS_CHANNEL}|{JOBS.namespace}|{BENCH_JOBS.namespace}|\bgate:[^\s]|\b{SCHEMA}\."
)
"""What holds one of ours, such as SQL or a command."""

NO_NAMES: Final = {
    "event:": "a cell of a table on the screen",
    "VmHWM:": "a line of /proc",
    "failed:{}": "a transaction's source key",
    "won:{}": "the same",
    "reprice:": "the beginning of one",
    "used_before_s::numeric": "SQL's cast",
}

CONSTANTS: Final = {name for name in vars(names) if name.isupper()}


def texts(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Each text of a program with {} for what is put into it; docstrings, and formats such as .2f, left out."""
    passed_over: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            passed_over.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            passed_over.update(id(part) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            passed_over.add(id(node.format_spec))
    for node in ast.walk(tree):
        if id(node) in passed_over:
            continue
        if isinstance(node, ast.JoinedStr):
            yield (
                node,
                "".join(str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            yield node, node.value.decode("latin-1")


def uses_ours(node: ast.AST) -> bool:
    return any(
        (isinstance(each, ast.Name) and each.id in CONSTANTS)
        or (isinstance(each, ast.Attribute) and each.attr in CONSTANTS | {"namespace"})
        for each in ast.walk(node)
    )


def names_written(program: str) -> list[str]:
    """What a program writes that is a name of a key or a schema, or is made of one."""
    tree = ast.parse(program)
    found = [
        text
        for node, text in texts(tree)
        if (KEY_SHAPED.fullmatch(text) and text not in NO_NAMES)
        or NAMED.search(text)
        or text == SCHEMA
        or (PUT_TOGETHER.fullmatch(text) and uses_ours(node))
    ]
    return found + [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add | ast.Mod)
        and any(
            isinstance(side, ast.Name | ast.Attribute) and uses_ours(side) for side in (node.left, node.right)
        )
    ]


def sources() -> list[Path]:
    found = [path for room in ("metering", "workers", "db") for path in (ROOT / room).rglob("*.py")]
    return [path for path in found if not str(path.relative_to(ROOT)).startswith(MAY_WRITE_THEM)]


def test_nothing_else_writes_a_name() -> None:
    assert len(sources()) > 100
    written = {
        str(path.relative_to(ROOT)): found
        for path in sources()
        if (found := names_written(path.read_text(encoding="utf-8")))
    }
    assert written == {}, f"metering/runtime/names.py makes names; these are written elsewhere: {written}"


def test_no_lua_writes_a_name() -> None:
    for path in all_files():
        code = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
        literals = [text for pair in re.findall(r"'([^']*)'|\"([^\"]*)\"", code) for text in pair]
        assert not [text for text in literals if KEY_SHAPED.fullmatch(text) or NAMED.search(text)], path


@pytest.mark.parametrize(
    "program",
    [
        'client.xlen("calls:completed")',
        'client.xlen(b"calls:completed")',
        'client.hget(f"gate:{org_id}", "state")',
        'client.get(f"{prefix}gate:{org_id}")',
        'client.get(f"holds:{org_id}")',
        'client.set("metering:cells", 2)',
        'KEY = f"{STREAM}:{cell}"',
        'KEY = f"{names.JOBS.namespace}:{queue}"',
        'KEY = STREAM + ":more"',
        'KEY = SCHEMA + ".transactions"',
        'SQL = "SELECT * FROM public.transactions"',
        'SQL = f"SELECT * FROM public.{name}"',
        'MetaData(schema="public")',
    ],
)
def test_what_would_be_found(program: str) -> None:
    assert names_written(program)


@pytest.mark.parametrize(
    "program",
    [
        '"""The stream `calls:completed`."""',
        'address = f"{host}:{port}"',
        'text = f"the stream {STREAM} is empty"',
        'text = "closed the gate: it was a stray"',
        'text = f"{amount:>10.2f}"',
        'AT = "2026-04-20T18:25:06.201Z"',
    ],
)
def test_what_is_no_name(program: str) -> None:
    assert names_written(program) == []


def test_the_module_has_what_is_found() -> None:
    """So that the check is known to see names where they are."""
    found = names_written((ROOT / MAKES_NAMES).read_text(encoding="utf-8"))
    assert {STREAM, SIGNALS_CHANNEL, "gate:{}", SCHEMA, JOBS.namespace} <= set(found)


def test_the_names() -> None:
    assert gate_key(42) == "gate:42"
    assert gate_keys([3, 42]) == ["gate:3", "gate:42"]
    assert table("transactions") == "public.transactions"
    assert JOBS.heartbeats == "metering:jobs:__heartbeats__"
    assert JOBS.queue("money") == "metering:jobs:money"
    assert JOBS.messages("money") == "metering:jobs:money.msgs"
    assert JOBS.in_hand("worker", "money") == "metering:jobs:__acks__.worker.money"


@pytest.mark.parametrize("org_id", [1, 42, 2**32, 2**63 - 1])
def test_a_gates_key_tells_its_org(org_id: int) -> None:
    assert org_of_gate(gate_key(org_id).encode()) == org_id


@pytest.mark.parametrize(
    "key",
    [
        "gate:",
        "gate:0",
        "gate:042",
        "gate:-1",
        "gate:x",
        "gate:1:2",
        f"gate:{2**63}",
        "gate:" + "9" * 5000,
        "42",
        ":42",
    ],
)
def test_what_is_no_orgs_gate(key: str) -> None:
    assert org_of_gate(key.encode()) is None


def test_every_gate_is_found_by_the_pattern() -> None:
    assert gate_key(42).startswith(names.ALL_GATES.removesuffix("*"))


def test_valkeys_users_may_use_just_these() -> None:
    """In deploy/valkey/users.sh, which no program writes."""
    script = (ROOT / "deploy" / "valkey" / "users.sh").read_text(encoding="utf-8")
    patterns = set(re.findall(r"(?:~|&)([a-z][\w:*]*)", script))
    known = {
        STREAM,
        names.ALL_GATES,
        names.ALL_HOLDS,
        names.SIGNALS_LOG,
        SIGNALS_CHANNEL,
        f"{JOBS.namespace}*",
    }
    assert patterns == known

"""Lua scripts: put together from their files, each of which is run by somebody."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
import redis

from metering.runtime.lua import Line, lua_lines, lua_script
from tests.luacheck import ROOT, Script, _placed, all_files, all_scripts

ROOMS: Final = ("metering", "workers", "db")


def asked_for() -> list[Script]:
    """What the product's modules read."""
    found: list[Script] = []
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lua_script":
                _package, file = node.args
                assert isinstance(file, ast.Constant), f"{path}: a script is named where it is read"
                found.append(Script(".".join(path.relative_to(ROOT).parts[:-1]), str(file.value)))
    return found


def test_each_script_is_run_by_one_module() -> None:
    assert sorted(asked_for()) == all_scripts()
    assert len(all_scripts()) > 5


def test_no_lua_is_left_in_python() -> None:
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        assert "redis.call" not in path.read_text(encoding="utf-8"), path
        assert "redis.pcall" not in path.read_text(encoding="utf-8"), path


def test_no_function_is_written_twice() -> None:
    functions = Counter(
        (path.parent, name)
        for path in all_files()
        for name in re.findall(r"local function (\w+)", path.read_text(encoding="utf-8"))
    )
    assert len(functions) > 5
    assert set(functions.values()) == {1}


@pytest.mark.parametrize("script", all_scripts(), ids=lambda script: script.file)
def test_redis_compiles_it(script: Script, redis_client: redis.Redis) -> None:
    text = lua_script(script.package, script.file)
    if text.startswith("#!lua name="):  # a function library
        redis_client.function_load(text, replace=True)
        redis_client.function_flush()
    else:
        assert len(str(redis_client.script_load(text))) == 40


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose scripts share parts."""
    folder = tmp_path / "with_lua" / "lua"
    folder.mkdir(parents=True)
    (tmp_path / "with_lua" / "__init__.py").touch()
    (folder / "script.lua").write_text("-- a script\n--@include left.lua\n--@include right.lua\nreturn 1\n")
    (folder / "left.lua").write_text("--@include both.lua\nlocal left = both\n")
    (folder / "right.lua").write_text("--@include both.lua\nlocal right = both")
    (folder / "both.lua").write_text("local both = 'ä'\n", encoding="utf-8")
    (folder / "broken.lua").write_text("--@include nowhere.lua\n")
    (folder / "round.lua").write_text("--@include round.lua\nreturn 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "with_lua"


def test_parts_stand_where_they_are_first_included(package: str) -> None:
    expected = "-- a script\nlocal both = 'ä'\nlocal left = both\nlocal right = both\nreturn 1\n"
    assert lua_script(package, "script.lua") == expected
    assert lua_lines(package, "script.lua")[1:3] == [
        Line("both.lua", 1, "local both = 'ä'"),
        Line("left.lua", 2, "local left = both"),
    ]


def test_what_includes_itself_ends(package: str) -> None:
    assert lua_script(package, "round.lua") == "return 2\n"


def test_a_part_that_is_not_there_is_named(package: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.lua"):
        lua_script(package, "broken.lua")


def test_a_finding_is_told_where_it_stands_in_its_file(package: str) -> None:
    told = _placed(
        "stdin:3:7-10: (W211) unused variable 'left'", lua_lines(package, "script.lua"), "with_lua/lua"
    )
    assert told == "with_lua/lua/left.lua:2:7-10: (W211) unused variable 'left'"

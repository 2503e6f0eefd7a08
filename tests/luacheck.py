"""Lints the Lua scripts, each put together as Redis gets it: `python -m tests.luacheck`, which `make check` runs.

luacheck is no Python package (Debian: lua-check). Where it isn't there this says so; CI installs it (.ci/run).
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metering.runtime.lua import FOLDER, Line, lua_lines

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("metering", "workers", "db")

_FINDING: Final = re.compile(r"stdin:(?P<line>\d+):(?P<rest>.*)")


@dataclass(frozen=True, order=True)
class Script:
    """A script that is run, not a part of others."""

    package: str
    file: str

    def lines(self) -> list[Line]:
        return lua_lines(self.package, self.file)


def all_files() -> list[Path]:
    """Every Lua file of the product's packages, wherever it lies."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.lua"))


def all_scripts() -> list[Script]:
    """Every script: all files but those that others include."""
    found = [Script(".".join(path.relative_to(ROOT).parts[:-2]), path.name) for path in all_files()]
    parts = {
        Script(each.package, line.file) for each in found for line in each.lines() if line.file != each.file
    }
    return sorted(set(found) - parts)


def lint(lines: list[Line], folder: str, luacheck: str) -> list[str]:
    """What luacheck has to say of a script, each where it stands in its file."""
    done = subprocess.run(
        [luacheck, "--formatter", "plain", "--codes", "--ranges", "--config", str(ROOT / ".luacheckrc"), "-"],
        input="".join(f"{line.text}\n" for line in lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    said = (done.stdout + done.stderr).splitlines()
    if (done.returncode == 0) != (not said):
        raise RuntimeError(f"luacheck ended with {done.returncode} and said: {said}")
    return [_placed(finding, lines, folder) for finding in said]


def _placed(finding: str, lines: list[Line], folder: str) -> str:
    match = _FINDING.fullmatch(finding)
    if match is None:
        return finding
    at = lines[min(int(match["line"]), len(lines)) - 1]
    return f"{folder}/{at.file}:{at.number}:{match['rest']}"


def main() -> None:
    """Exits with 1 if luacheck has anything to say."""
    luacheck = shutil.which("luacheck")
    if luacheck is None:
        sys.stdout.write("Lua: NOT linted, luacheck isn't installed (Debian: apt-get install lua-check)\n")
        return
    scripts = all_scripts()
    findings: set[str] = set()
    for script in scripts:
        folder = "/".join((*script.package.split("."), FOLDER))
        findings.update(lint(script.lines(), folder, luacheck))
    if findings:
        sys.exit("\n".join(sorted(findings)))
    sys.stdout.write(
        f"Lua: {len(scripts)} scripts put together from {len(all_files())} files, nothing to mend\n"
    )


if __name__ == "__main__":
    main()

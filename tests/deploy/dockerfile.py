"""The Dockerfile: what it says, and what its image holds, made here without Docker."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.deploy.composed import ROOT

RUN_LIMIT_S: Final = 60.0


@dataclass(frozen=True)
class Stage:
    """The instructions from one FROM to the next: the keyword in capitals, and what follows it in one line."""

    instructions: tuple[tuple[str, str], ...]

    def all(self, keyword: str) -> list[str]:
        return [argument for found, argument in self.instructions if found == keyword]

    def only(self, keyword: str) -> str:
        (argument,) = self.all(keyword)
        return argument


def stages() -> list[Stage]:
    """The Dockerfile, read: comments dropped, continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        keyword, _, argument = line.partition(" ")
        if keyword == "FROM":
            found.append([])
        if keyword:
            found[-1].append((keyword, argument))
    return [Stage(tuple(instructions)) for instructions in found]


BUILD, FINAL = stages()


def environment() -> dict[str, str]:
    """What the final stage's ENV sets."""
    return dict(pair.split("=", 1) for pair in FINAL.only("ENV").split())


def labels() -> dict[str, str]:
    """What the final stage's LABEL sets."""
    return dict(re.findall(r'([\w.]+)="([^"]*)"', FINAL.only("LABEL")))


def copy_sources(app: Path) -> None:
    """Copy what the build stage copies into its working directory, to `app`, which is there."""
    for copy in BUILD.all("COPY"):
        source, target = copy.split()
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, app / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (app / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, app / target)


@dataclass(frozen=True)
class Image:
    """What the image holds: the sources that are copied, not installed, and of all packages only those of the runtime lock.

    So the project's own metadata, its development packages and all other files of the checkout are not there.
    """

    app: Path
    packages: Path

    @property
    def program(self) -> tuple[str, ...]:
        """The command `metering`: this Python, without what is installed for it."""
        return (sys.executable, "-S", "-c", "from metering.cli.main import main\nmain()")

    def environment(self) -> dict[str, str]:
        """The image's variables, but for PATH, with its places here."""
        found = {name: value for name, value in environment().items() if name != "PATH"}
        assert found["PYTHONPATH"] == "/app"
        return found | {"PYTHONPATH": os.pathsep.join((str(self.app), str(self.packages)))}

    def python(self, code: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """Run `code` with the image's modules."""
        return subprocess.run(
            [sys.executable, "-S", "-c", code],
            cwd=cwd,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )


def make_image(directory: Path) -> Image:
    """Make what the image holds in `directory`, which is made as well. The runtime packages are links to this Python's."""
    image = Image(directory / "app", directory / "packages")
    image.app.mkdir(parents=True)
    image.packages.mkdir()
    copy_sources(image.app)
    _link_packages(image.packages, _locked_packages())
    packages = [copy.split()[0] for copy in BUILD.all("COPY") if (ROOT / copy.split()[0]).is_dir()]
    compiling = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *packages]
    subprocess.run(compiling, cwd=image.app, timeout=RUN_LIMIT_S, check=True)
    return image


def _locked_packages() -> list[str]:
    """The names in the runtime lock; those for other Pythons or systems left out."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==")[0] for line in lines if re.match(r"[a-z0-9]", line) and ";" not in line]
    assert len(pins) > len({"fastapi", "redis", "stripe"})
    return pins


def _link_packages(target: Path, names: Sequence[str]) -> None:
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = target / top
            if not link.is_symlink():
                link.symlink_to(Path(str(distribution.locate_file(top))))

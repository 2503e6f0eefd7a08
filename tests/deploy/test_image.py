"""The Dockerfile: what it says, what its image holds, and its steps run by hand where no Docker is."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metering import __version__
from tests.deploy.composed import ROLES, ROOT
from tests.deploy.dockerfile import BUILD, FINAL, copy_sources, environment, labels, make_image
from tests.deploy.stack import clean_environment

# Prints each module of ours, and the places that they come from. The one of alembic's runs migrations when it is imported.
IMPORT_ALL = """
import importlib, pathlib, pkgutil
import db, metering, workers

for package in (db, metering, workers):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if found.name not in {"db.migrations.env", "metering.__main__"}:
            print(importlib.import_module(found.name).__name__)
    print(pathlib.Path(package.__path__[0]).parent)
"""


def python_version() -> str:
    return FINAL.only("FROM").removeprefix("python:").removesuffix("-slim")


def test_both_stages_have_the_same_slim_python() -> None:
    assert BUILD.only("FROM") == FINAL.only("FROM") + " AS build"
    assert re.fullmatch(r"python:3\.\d+-slim", FINAL.only("FROM"))


def test_only_the_runtime_lock_is_installed_and_each_wheel_by_its_hash() -> None:
    installs = [run for run in BUILD.all("RUN") + FINAL.all("RUN") if " install " in run]
    assert len(installs) == 1
    assert installs == [run for run in BUILD.all("RUN") if " install " in run]
    words = installs[0].split()
    assert words[words.index("--requirement") + 1] == "requirements.lock"
    assert words.count("--requirement") == 1
    assert "--require-hashes" in words
    assert words[words.index("--only-binary") + 1] == ":all:"


def test_the_final_stage_gets_files_and_no_tools() -> None:
    assert all(copied.startswith("--from=build ") for copied in FINAL.all("COPY"))
    assert not re.search(r"apt|pip|gcc|curl", " ".join(FINAL.all("RUN")))


def test_it_runs_as_a_numbered_user_that_is_not_root() -> None:
    uid, gid = FINAL.only("USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert f"--uid {uid}" in FINAL.only("RUN")
    assert f"--gid {gid}" in FINAL.only("RUN")
    keywords = [keyword for keyword, _ in FINAL.instructions]
    assert keywords.index("USER") > max(
        at for at, keyword in enumerate(keywords) if keyword in {"RUN", "COPY"}
    )


def test_its_process_is_the_program_and_hears_the_signal_to_stop() -> None:
    assert FINAL.only("ENTRYPOINT") == '["metering"]'
    assert FINAL.only("CMD") == '["--help"]'
    assert FINAL.only("STOPSIGNAL") == "SIGTERM"


def test_nothing_else_reaches_the_build() -> None:
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [pattern for pattern in patterns if not pattern.startswith("#")]
    assert patterns[0] == "*"
    let_in = {pattern.strip("!/") for pattern in patterns if pattern.startswith("!")}
    copied = {source for copy in BUILD.all("COPY") for source in copy.split()[:-1]}
    assert let_in == copied
    assert all((ROOT / source).exists() for source in copied)


def test_the_version_is_the_same_for_package_command_and_label() -> None:
    assert importlib.metadata.version("metering") == __version__
    assert labels()["org.opencontainers.image.version"] == __version__


def test_every_module_is_imported_from_what_the_image_holds(tmp_path: Path) -> None:
    """Those too that a command imports only when it runs. None may need the project's metadata or a package for tests."""
    image = make_image(tmp_path / "image")
    done = image.python(IMPORT_ALL, tmp_path)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert {"metering.api.app", "workers.jobs", "db.models", "metering.sandbox.servers.embedded"} <= set(
        names
    )
    assert not any(place != str(image.app) for place in names if place.startswith("/"))
    shown = image.python(
        "import sys\nfrom metering.cli.main import main\nsys.argv[1:] = ['--version']\nmain()", tmp_path
    )
    assert shown.stdout == f"metering {__version__}\n", shown.stderr
    gone = image.python("import importlib.metadata; importlib.metadata.version('metering')", tmp_path)
    assert "PackageNotFoundError" in gone.stderr  # so that what this test is for would be seen


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_build_steps_make_a_program_that_runs(tmp_path: Path) -> None:
    """The steps as they stand, with this Python for the image's, and other places for the venv and the project."""
    places = {"/opt/venv": str(tmp_path / "venv"), "/app": str(tmp_path / "app")}

    def here(text: str) -> str:
        for there, place in places.items():
            text = text.replace(there, place)
        return text

    app = tmp_path / "app"
    app.mkdir()
    copy_sources(app)
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for run in BUILD.all("RUN"):
        built = {**os.environ, "PATH": tools}
        done = subprocess.run(
            ["/bin/sh", "-c", here(run)], cwd=app, env=built, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    settings = {name: here(value) for name, value in environment().items()}
    settings["PATH"] = settings["PATH"].replace("$PATH", "/usr/bin:/bin")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "db").mkdir(parents=True)
    (elsewhere / "db" / "__init__.py").write_text("raise SystemExit('imported from the directory')")

    def run_inside(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=elsewhere,
            env=clean_environment({}) | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    metering = str(tmp_path / "venv" / "bin" / "metering")
    assert run_inside(metering, "--version").stdout == f"metering {__version__}\n"
    shown = run_inside(metering, "--help")
    assert shown.returncode == 0, shown.stderr
    commands = ("migrate", *ROLES)
    assert all(name in shown.stdout for name in commands)
    for name in commands:
        assert run_inside(metering, name, "--help").returncode == 0
    # Everything is imported, not only what --help needs; the embedded servers are not there, and it says so.
    status = run_inside(metering, "status")
    assert status.returncode == 1
    assert "METERING_DATABASE_URL" in status.stderr
    inside = run_inside(
        str(tmp_path / "venv" / "bin" / "python"),
        "-c",
        "import db.models, metering.api.app, metering.cli.main, workers.jobs, workers.meter; print(db.__file__)",
    )
    assert inside.stdout.strip() == str(app / "db" / "__init__.py"), inside.stderr
    assert not (tmp_path / "venv" / "bin" / "pip").exists()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_lock_has_a_wheel_for_the_image_of_everything(machine: str, tmp_path: Path) -> None:
    platforms = [f"--platform=manylinux{kind}_{machine}" for kind in ("2014", "_2_28", "_2_34")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"),
            *("--ignore-installed", f"--target={tmp_path}", f"--python-version={python_version()}"),
            *(*platforms, "--only-binary=:all:", "--require-hashes", "--requirement=requirements.lock"),
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()

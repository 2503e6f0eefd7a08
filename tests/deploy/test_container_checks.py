"""The container checks where there is no Docker: they run only when they are asked for, and then fail with a sentence."""

import os
import re
import subprocess
import sys

import pytest

from tests.deploy.composed import ROOT

CHECKS = "tests/containers"


def run_pytest(*arguments: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run pytest on the container checks, where no Docker Engine is found."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, CHECKS],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "DOCKER_HOST": "unix:///nonexistent/docker.sock",
            "PATH": os.environ["PATH"] if path is None else path,
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("target", ["test", "test-long"])
def test_the_targets_that_need_no_docker_leave_them_out(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.split(rf"^{target}:.*$", makefile, flags=re.MULTILINE)[1].partition("\n\n")[0]
    assert re.search(r'-m "[^"]* and not containers"$', recipe, re.MULTILINE)
    for checks in (ROOT / CHECKS).glob("test_*.py"):
        assert re.search(
            r"^pytestmark = \[?pytest\.mark\.containers\b", checks.read_text(encoding="utf-8"), re.MULTILINE
        )


@pytest.mark.long
@pytest.mark.parametrize("path", ["/nonexistent", None], ids=["no docker command", "no engine that answers"])
def test_without_an_engine_they_fail_with_a_sentence(path: str | None) -> None:
    done = run_pytest("-m", "containers", path=path)
    assert done.returncode == 1, done.stdout
    said = done.stdout + done.stderr
    assert "Docker Engine 25.0 or newer is needed for the container checks" in said
    assert "Traceback" not in said
    assert "skipped" not in said

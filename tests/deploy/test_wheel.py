"""The project as a wheel: it is no way to publish it, but holds what the checkout and the image hold."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.deploy.composed import ROOT
from tests.deploy.stack import clean_environment
from tests.luacheck import all_files

# What reads files of the packages as it is imported, or when it is called.
USE_THEM = """
import metering.signals.gates, metering.signals.reload_signals, workers.dead_workers, workers.stream
from db.postgres.schema import expected_revision
print(metering.signals.gates.__file__, workers.stream.__file__, expected_revision(), sep="\\n")
"""


def test_the_wheel_holds_the_scripts_and_runs_with_them(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=60, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = set(opened.namelist())
        opened.extractall(tmp_path / "installed")
    scripts = {str(path.relative_to(ROOT)) for path in all_files()}
    assert len(scripts) > 5
    assert scripts <= held

    done = subprocess.run(
        [sys.executable, "-c", USE_THEM],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(tmp_path / "installed")}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    gates, stream, revision = done.stdout.split()
    assert Path(gates).is_relative_to(tmp_path)
    assert Path(stream).is_relative_to(tmp_path)
    assert revision

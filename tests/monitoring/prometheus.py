"""A real Prometheus, Debian's, that scrapes processes of this machine every second."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.deploy.stack import free_port
from tests.waiting import wait_until

NEEDED: Final = "Debian's package `prometheus` is needed for this test: apt-get install prometheus (CI does)."
LIMIT_S: Final = 60.0


def program(name: str) -> str:
    """Where `prometheus` or `promtool` is. Fails where it isn't: nothing is left out in silence."""
    found = shutil.which(name)
    assert found is not None, NEEDED
    return found


def promtool(*arguments: str, stdin: str = "") -> str:
    """What it says; it must be content."""
    done = subprocess.run(
        [program("promtool"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Alert:
    """An alert that is pending or fires."""

    name: str
    state: str
    labels: Mapping[str, str]
    summary: str


@dataclass(frozen=True)
class Prometheus:
    """Its HTTP API."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an instant query gives."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def alerts(self) -> list[Alert]:
        """Those that are pending or fire."""
        told = httpx.get(f"{self.url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
        return [
            Alert(each["labels"]["alertname"], each["state"], each["labels"], each["annotations"]["summary"])
            for each in told
        ]

    def firing(self, name: str) -> Alert | None:
        """The alert of that name, if it fires."""
        return next((each for each in self.alerts() if (each.name, each.state) == (name, "firing")), None)

    def up(self) -> int:
        """How many targets were reached the last time."""
        return sum(each["value"][1] == "1" for each in self.query("up"))


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[int]], *, rules: Mapping[str, Any] | None = None
) -> Iterator[Prometheus]:
    """One that scrapes metrics ports of this machine, by service, and evaluates `rules` every second."""
    folder.mkdir()
    (folder / "rules.yml").write_text(yaml.safe_dump(rules or {"groups": []}))
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [
            {
                "job_name": "metering",
                "static_configs": [
                    {"targets": [f"127.0.0.1:{port}" for port in ports], "labels": {"service": service}}
                    for service, ports in targets.items()
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        started = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(lambda: _ready(started.url), limit_s=LIMIT_S)
        yield started
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def now_text() -> str:
    return time.strftime("%H:%M:%S", time.gmtime())

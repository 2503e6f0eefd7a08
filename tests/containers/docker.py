"""Docker's command line, and one installation of docker-compose.yml that leaves every other one of this machine alone."""

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.deploy.composed import (
    DEMO,
    KEEPER,
    OURS,
    ROLES,
    ROOT,
    SERVERS,
    compose_file,
    environment_file,
    references,
)
from tests.docs.pages import page, section

PROJECT: Final = f"metering-check-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
"""Of this checkout alone: a real installation is called `metering`, and another checkout may be tried at the same time."""
IMAGE: Final = PROJECT
IMAGES: Final = dict.fromkeys((KEEPER, *OURS, *DEMO), IMAGE) | {name: f"{IMAGE}-{name}" for name in SERVERS}
"""By service."""
FILES: Final = ROOT / ".containers"
"""In the checkout, because Docker's command line may see no other folder of this machine."""
CHECKOUT: Final = FILES / "checkout"
"""What is built and started: a copy of this checkout, as `umask 077` makes it."""
COMPOSE: Final = (
    *("docker", "compose", "--project-name", PROJECT, "--env-file", "../env"),
    *("--file", "docker-compose.yml", "--file", "../images.yml"),
)
PARTS: Final = (
    *("docker-compose.yml", "Dockerfile", ".dockerignore", ".env.example", "LICENSE", "requirements.lock"),
    *("metering", "workers", "db", "deploy"),
)
LEAST: Final = {"Docker Engine": (25, 0), "Compose": (2, 24)}
"""What docs/how-to/operations.md asks for."""
LIMIT_S: Final = 600.0
CALL_CENTS: Final = 16
"""What each call costs that the checks push."""
LOG_LINES: Final = 60


class DockerError(Exception):
    """A command of Docker's failed. The text is the command and what it said."""


def run(*command: str, stdin: str = "", limit_s: float = LIMIT_S) -> str:
    """Run a command in the copy of the checkout, and give what it printed. Raises DockerError unless it ends with status 0."""
    unwanted = {name for name, _, _ in references(compose_file())}
    done = subprocess.run(
        command,
        cwd=CHECKOUT if CHECKOUT.is_dir() else ROOT,
        # Variables of the shell would win over the file's.
        env={
            name: value
            for name, value in os.environ.items()
            if name not in unwanted and not name.startswith("COMPOSE_")
        },
        input=stdin,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stdout[-4_000:] + done.stderr[-4_000:]).strip()
        raise DockerError(f"{' '.join(command)}\nended with status {done.returncode}:\n{said}")
    return done.stdout


def unusable() -> str | None:
    """Why the checks can't run on this machine, as a sentence; None if they can."""
    asked = {
        "Docker Engine": ("docker", "version", "--format", "{{.Server.Version}}"),
        "Compose": ("docker", "compose", "version", "--short"),
    }
    for name, command in asked.items():
        needed = f"{name} {'.'.join(map(str, LEAST[name]))} or newer is needed for the container checks"
        try:
            found = run(*command, limit_s=60).strip()
        except (OSError, DockerError, subprocess.TimeoutExpired) as error:
            said = str(error).strip().splitlines()[-1]
            return f"{needed}, and `{' '.join(command)}` finds none ({said}). Start one, or name one by DOCKER_HOST."
        version = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
        if version < LEAST[name]:
            return f"{needed}; this is {found}."
    return None


@dataclass(frozen=True)
class Installation:
    """docker-compose.yml as it stands, under a project's name, an image's name, ports and passwords of its own."""

    variables: Mapping[str, str]
    further: tuple[str, ...] = ()
    """More of Compose's files, below FILES."""

    @classmethod
    def prepare(cls) -> "Installation":
        """Write the files that it needs. Nothing is started."""
        wanted = environment_file(ROOT / ".env.example")
        stripe = {
            "STRIPE_API_KEY": f"sk_test_{secrets.token_hex(12)}",
            "STRIPE_WEBHOOK_SECRET": f"whsec_{secrets.token_hex(12)}",
            "STRIPE_API_BASE": "http://stripe:12111",  # runs only in the checks that charge
        }
        # 0: Docker takes free ports, and others each time that a container is started.
        ports = {"HTTP_PORT": "0", "VALKEY_PORT": "0"}
        variables = {name: secrets.token_hex(24) for name in wanted} | stripe | ports
        FILES.mkdir(exist_ok=True, mode=0o700)
        write_yaml(
            FILES / "images.yml", {"services": {name: {"image": image} for name, image in IMAGES.items()}}
        )
        copy_checkout(CHECKOUT)
        made = cls(variables)
        made.write_environment()
        return made

    def compose(self, *words: str, stdin: str = "") -> str:
        """Run `docker compose` on it."""
        return run(*self._compose(), *words, stdin=stdin)

    def also(self, *names: str) -> "Installation":
        """The same with more of Compose's files."""
        return replace(self, further=(*self.further, *names))

    def with_variables(self, **changed: str) -> "Installation":
        """The same with other variables in its file."""
        made = replace(self, variables={**self.variables, **changed})
        made.write_environment()
        return made

    def write_environment(self) -> None:
        """Write its .env."""
        text = "".join(f"{name}={value}\n" for name, value in self.variables.items())
        (FILES / "env").write_text(text, encoding="utf-8")

    def _compose(self) -> tuple[str, ...]:
        return (*COMPOSE, *(word for name in self.further for word in ("--file", f"../{name}")))

    def start(self, *services: str, meters: int = 1, jobs: int = 1) -> None:
        """`up`, until all is healthy; nothing where it is, and no other number runs."""
        wanted = Counter({**dict.fromkeys((KEEPER, *SERVERS, *ROLES), 1), "meter": meters, "jobs": jobs})
        if not services and not self.further and self._healthy() == wanted:
            return
        scale = ("--scale", f"meter={meters}", "--scale", f"jobs={jobs}")
        self.compose("up", "--detach", "--wait", *scale, *services)

    def remove(self) -> None:
        """Take everything of it away: containers, network, volumes, image, files."""
        # What a profile started is left behind unless the profile is named, with its volumes.
        profiles = ("--profile", "demo", "--profile", "monitoring")
        self.compose(*profiles, "down", "--volumes", "--remove-orphans", "--timeout", "20")
        for image in set(IMAGES.values()):
            if run("docker", "image", "ls", "--quiet", image):
                run("docker", "image", "rm", "--force", image)
        shutil.rmtree(FILES)

    def operator(self, *words: str) -> str:
        """Run an operator's command."""
        return self.compose("run", "--rm", "-T", "operator", *words)

    def balance_cents(self) -> int:
        """The sum of all balances."""
        asked = ("-Atc", "SELECT coalesce(sum(balance_cents), 0) FROM accounts")
        return int(self.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "metering", *asked))

    def meters_asking(self) -> int:
        """How many meters have asked for calls in the last ten seconds. Those that are gone are listed for a while as well."""
        meters = json.loads(self.operator("status", "--json"))["meters"]
        return sum(meter["idle_seconds"] < 10 for meter in meters)

    def wait_until_billed(self, before_cents: int, calls: int) -> None:
        """Wait until so many calls are billed, and not one more."""
        expected = before_cents - calls * CALL_CENTS
        wait_until(lambda: self.balance_cents() <= expected, f"{calls} calls being billed", limit_s=120)
        assert self.balance_cents() == expected

    def documented(self, lines: Sequence[str]) -> None:
        """Run lines of a how-to page as they stand, but for what is this installation's own, without a terminal."""
        own = {"docker compose": " ".join(self._compose()), "metering_postgres": f"{PROJECT}_postgres"}
        for line in lines:
            here = line.replace("metering.dump", "../metering.dump")
            for name, replacement in own.items():
                here = here.replace(name, replacement)
            here = re.sub(r" (exec|run --rm)(?! -T)", r" \1 -T", here)
            run("/bin/sh", "-c", here)

    def address(self, service: str, port: int) -> str:
        """Where a port is published now, as host and port."""
        return self.compose("port", service, str(port)).strip()

    def outside(self, code: str, **given: Any) -> str:
        """Run Python beside Docker, in the machine's own network, where published ports are; `given` are its variables."""
        return run(
            *("docker", "run", "--rm", "--interactive", "--network", "host", "--entrypoint", "python", IMAGE),
            *("-c", f"import json, sys\nglobals().update(json.load(sys.stdin))\n{code}"),
            stdin=json.dumps(given),
        )

    def push(self, call_ids: Sequence[int]) -> None:
        """Push calls of org 1 as telephony does, by the published port: of 75 seconds each, for 16 cents."""
        user = f"telephony:{self.variables['TELEPHONY_PASSWORD']}"
        call = {"org_id": 1, "tier": "bolt", "direction": "outbound", "duration_seconds": 75}
        call["ended_at"] = "2026-04-20T18:25:06.201Z"
        self.outside(
            "from metering.client import MeteringClient\n"
            "with MeteringClient(url) as telephony:\n    telephony.push_many(calls)",
            url=f"redis://{user}@{self.address('valkey', 6379)}/0",
            calls=[call | {"call_id": call_id} for call_id in call_ids],
        )

    def ask_api(self, path: str, key: str = "") -> Any:
        """What the API answers by its published port."""
        text = self.outside(
            "from urllib.request import ProxyHandler, Request, build_opener\n"
            "request = Request(url, headers={'Authorization': f'Bearer {key}'} if key else {})\n"
            "print(build_opener(ProxyHandler({})).open(request, timeout=20).read().decode())",
            url=f"http://{self.address('api', 8000)}{path}",
            key=key,
        )
        return json.loads(text)

    def _healthy(self) -> Counter[str]:
        """How many containers of each service are healthy; those of other states count as another service's."""
        lines = self.compose("ps", "--format", "{{.Service}} {{.Health}}").splitlines()
        return Counter(line.removesuffix(" healthy") for line in lines)

    def containers(self) -> list[str]:
        """The ids of all its containers, ended ones too."""
        return self.compose("ps", "--all", "--quiet").split()

    def container(self, service: str, number: int = 1) -> str:
        """The name of a service's container."""
        return f"{PROJECT}-{service}-{number}"

    def state(self, container: str, template: str) -> str:
        """What Docker says of a container."""
        return run("docker", "inspect", container, "--format", template).strip()

    def kill(self, container: str) -> None:
        """SIGKILL, as by the kernel: told by `docker kill`, Docker would not start it again."""
        run(
            *("docker", "run", "--rm", "--pid", "host", "--network", "none", "--user", "0:0"),
            *("--cap-drop", "ALL", "--cap-add", "KILL", "--entrypoint", "python", IMAGE),
            *("-c", "import os, sys; os.kill(int(sys.argv[1]), 9)", self.state(container, "{{.State.Pid}}")),
        )

    def logs(self, *services: str, since: str = "", lines: int | None = None) -> str:
        """What services logged, or all of them."""
        options = [*(["--since", since] if since else []), *(["--tail", str(lines)] if lines else [])]
        return self.compose("logs", "--no-color", *options, *services)


def commands(name: str, heading: str) -> list[str]:
    """The first block of commands under a heading of a how-to page."""
    block = re.findall(r"(?:^    .*\n)+", section(page(f"how-to/{name}.md"), heading), re.MULTILINE)[0]
    return [line.strip() for line in block.splitlines()]


def copy_checkout(target: Path) -> None:
    """Copy what an installation is made of to `target`, where only its owner may read it."""
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                target / name,
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)


def write_yaml(path: Path, content: object) -> None:
    """Write a file of Compose's."""
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML


def wait_until(condition: Callable[[], object], what: str, *, limit_s: float = 60.0) -> None:
    """Return as soon as `condition` holds; fail, naming `what`, if it doesn't within `limit_s` seconds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {limit_s:.0f} s"
        time.sleep(0.5)

"""deploy/kubernetes as the cluster would read it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy.composed import ROOT

KUBERNETES: Final = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS: Final = (KUBERNETES / "kustomization.yaml", KUBERNETES / "migrate" / "kustomization.yaml")
FILES: Final = tuple(sorted(path for path in KUBERNETES.rglob("*.yaml") if path not in KUSTOMIZATIONS))
COMPONENT: Final = "app.kubernetes.io/component"
SECRETS_PATH: Final = "/run/secrets/metering"


def documents(path: Path) -> list[dict[str, Any]]:
    """The objects in a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


OBJECTS: Final[tuple[dict[str, Any], ...]] = tuple(each for path in FILES for each in documents(path))


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind, by name."""
    return {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == kind}


@dataclass(frozen=True)
class Pod:
    """What a Deployment or a Job makes, of one container."""

    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.spec["containers"]
        container: dict[str, Any] = only
        return container

    @property
    def component(self) -> str:
        return self.labels[COMPONENT]

    def ports(self) -> dict[str, int]:
        """Its ports, by name."""
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    def variables(self) -> dict[str, str]:
        """Its environment, ConfigMaps' included."""
        found = {each["name"]: each["value"] for each in self.container["env"]}
        for source in self.container.get("envFrom", []):
            found |= of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]
        return found

    def secrets(self) -> dict[str, str]:
        """The keys of its Secret that it needs, by the setting that is in each."""
        return {
            name.removesuffix("_FILE"): value.removeprefix(f"{SECRETS_PATH}/")
            for name, value in self.variables().items()
            if name.endswith("_FILE")
        }

    def probes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Its probes, by what they are for."""
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            if name in self.container:
                yield name, self.container[name]


PODS: Final = {
    name: Pod(name, each["spec"]["template"]["metadata"]["labels"], each["spec"]["template"]["spec"])
    for kind in ("Deployment", "Job")
    for name, each in of_kind(kind).items()
}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector chooses what has these labels."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )

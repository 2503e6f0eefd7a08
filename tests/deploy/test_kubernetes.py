"""deploy/kubernetes against Kubernetes' own schemas and against the program; it was never applied to a cluster."""

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import typer.main
import yaml

from metering import __version__
from metering.api.health import router
from metering.cli.main import app
from metering.console.roles import STOP_LIMIT_S
from metering.console.stripe_access import named_return_url
from metering.runtime.metrics_server import HEALTH_PATH
from metering.runtime.role_metrics import ROLES as METRICS
from metering.runtime.settings import SECRETS, read_settings
from tests.deploy.composed import CHARGING, METRICS_PORT, ROLES
from tests.deploy.manifests import (
    COMPONENT,
    FILES,
    KUSTOMIZATIONS,
    OBJECTS,
    PODS,
    SECRETS_PATH,
    Pod,
    documents,
    of_kind,
    selects,
)
from tests.docs.pages import page
from tests.docs.test_settings import OWN

VERSIONS = ("1.29", "1.33", "1.37")
PAGE = page("how-to/kubernetes.md")
VALUES = {
    "METERING_DATABASE_URL": "postgresql://metering_api:p@postgres.example.com:5432/metering",
    "METERING_REDIS_URL": "rediss://api:p@valkey.example.com:6379/0",
    "METERING_TELEPHONY_TOKEN": "",
    "METERING_OPERATOR_TOKEN": "o",
    "STRIPE_API_KEY": "sk_live_x",
    "STRIPE_WEBHOOK_SECRET": "whsec_x",
}
EVERY_POD = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
EVERY_ROLE = pytest.mark.parametrize("pod", [PODS[f"metering-{role}"] for role in ROLES], ids=ROLES)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kubernetes_knows_each_field(path: Path, version: str) -> None:
    for each in documents(path):
        assert kubernetes_validate.validate(each, version, strict=True) == version


def test_a_misspelt_field_would_be_refused() -> None:
    wrong = copy.deepcopy(of_kind("Deployment")["metering-meter"])
    wrong["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=["roles", "migrate"])
def test_what_is_applied_is_every_file_in_this_programs_version(path: Path) -> None:
    (kustomization,) = documents(path)
    listed = [path.parent / name for name in kustomization["resources"]]
    assert sorted(listed) == [each for each in FILES if each.parent == path.parent]
    assert kustomization["namespace"] in of_kind("Namespace")
    (image,) = kustomization["images"]
    assert (image["name"], image["newTag"]) == ("metering", __version__)


def test_everything_is_in_the_namespace_and_no_secret_is_among_it() -> None:
    (namespace,) = of_kind("Namespace")
    for each in OBJECTS:
        assert each["kind"] != "Secret"
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == namespace
    assert set(PODS) == {f"metering-{component}" for component in (*ROLES, "migrate", "operator")}


@EVERY_POD
def test_a_pod_runs_a_command_that_exists(pod: Pod) -> None:
    assert pod.container["image"] == "metering"
    if pod.component == "operator":
        assert pod.container["command"] == ["sleep", "infinity"]
        return
    command: Any = typer.main.get_command(app)
    assert "command" not in pod.container
    assert pod.container["args"] == [pod.component]
    assert pod.component in command.commands


@EVERY_POD
def test_a_pod_sets_what_the_program_reads(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = pod.secrets()
    assert secrets.keys() <= set(SECRETS)
    for name, value in pod.variables().items():
        assert name.removesuffix("_FILE") in OWN, f"{name} is no setting"
        if name.endswith("_FILE"):
            file = tmp_path / secrets[name.removesuffix("_FILE")]
            file.write_text(VALUES[name.removesuffix("_FILE")])
            monkeypatch.setenv(name, str(file))
        else:
            assert name not in SECRETS, f"{name} would show"
            monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.database_url is not None
    assert (settings.redis_url is None) == (pod.component == "migrate")
    assert (settings.stripe_api_key is not None) == (pod.component in {*CHARGING, "operator"})
    if pod.component in ROLES:
        assert (settings.metrics_host, settings.metrics_port) == ("0.0.0.0", METRICS_PORT)  # noqa: S104
        assert pod.ports()["metrics"] == settings.metrics_port
    if pod.component == "api":
        assert settings.http_host == "0.0.0.0"  # noqa: S104 - in a container
        assert pod.ports()["http"] == settings.http_port
        assert named_return_url(settings) == settings.return_url


def test_a_misspelt_variable_would_be_found() -> None:
    pod = copy.deepcopy(PODS["metering-meter"])
    pod.container["env"].append({"name": "METERING_METRICS_PROT", "value": "1"})
    assert any(name.removesuffix("_FILE") not in OWN for name in pod.variables())


@EVERY_POD
def test_a_pods_secret_is_named_and_the_page_says_what_is_in_it(pod: Pod) -> None:
    mounts = {mount["name"]: mount for mount in pod.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    assert mounts.keys() == volumes.keys() == {"secrets", "tmp"}
    assert mounts["secrets"] == {"name": "secrets", "mountPath": SECRETS_PATH, "readOnly": True}
    assert volumes["secrets"]["secret"] == {"secretName": pod.name, "defaultMode": 0o440}
    command = re.search(
        rf"create secret generic {pod.name}((?: \\\n)?(?: *--from-file=\S+(?: \\\n)?)+)", PAGE
    )
    assert command is not None, f"the page doesn't make {pod.name}"
    made = {key.partition("=")[0] for key in re.findall(r"--from-file=(\S+)", command[1])}
    assert made == set(pod.secrets().values())


@EVERY_ROLE
def test_probes_ask_what_the_program_serves(pod: Pod) -> None:
    served = {"metrics": {HEALTH_PATH}, "http": {getattr(route, "path", "") for route in router.routes}}
    probes = dict(pod.probes())
    assert probes.keys() == {"startupProbe", "livenessProbe", "readinessProbe"}
    for probe in probes.values():
        (asked,) = probe.keys() & {"httpGet", "tcpSocket"}
        assert probe[asked]["port"] in pod.ports()
        if asked == "httpGet":
            assert probe[asked]["path"] in served[probe[asked]["port"]]
    readiness = "/readyz" if pod.component == "api" else HEALTH_PATH
    assert probes["readinessProbe"]["httpGet"]["path"] == readiness
    # What asks Postgres or compares clocks must not end the process.
    assert probes["livenessProbe"].get("httpGet", {}).get("path") in {None, "/v1/healthz"}
    assert probes["startupProbe"]["periodSeconds"] * probes["startupProbe"]["failureThreshold"] >= 600


@EVERY_POD
def test_a_pod_is_confined(pod: Pod) -> None:
    assert pod.spec["automountServiceAccountToken"] is False
    assert pod.spec["enableServiceLinks"] is False
    assert pod.spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod.container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod.container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in pod.container["resources"]["limits"]


@EVERY_ROLE
def test_a_role_may_finish_what_it_has_in_hand(pod: Pod) -> None:
    asleep_s = 5 if pod.component == "api" else 0
    stop = pod.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    assert stop == (["sleep", str(asleep_s)] if asleep_s else None)
    assert pod.spec["terminationGracePeriodSeconds"] >= STOP_LIMIT_S + asleep_s + 5


@EVERY_POD
def test_policies_let_a_pod_reach_what_its_settings_name(pod: Pod) -> None:
    policies = {
        name: policy["spec"]
        for name, policy in of_kind("NetworkPolicy").items()
        if selects(policy["spec"]["podSelector"], pod.labels)
    }
    assert policies["metering-default-deny"].keys() == {"podSelector", "policyTypes"}
    assert policies["metering-default-deny"]["policyTypes"] == ["Ingress", "Egress"]
    out = {
        port["port"]
        for each in policies.values()
        for rule in each.get("egress", [])
        for port in rule["ports"]
    }
    assert (5432 in out) == ("METERING_DATABASE_URL" in pod.secrets())
    assert (6379 in out) == ("METERING_REDIS_URL" in pod.secrets())
    assert (443 in out) == ("STRIPE_API_KEY" in pod.secrets())
    assert out <= {53, 5432, 6379, 443}
    into = {
        port["port"]
        for each in policies.values()
        for rule in each.get("ingress", [])
        for port in rule["ports"]
    }
    assert into == set(pod.ports())


def test_every_selector_chooses_one_deployments_pods() -> None:
    deployments = of_kind("Deployment")
    for name, each in deployments.items():
        chosen = [pod for pod in PODS.values() if selects(each["spec"]["selector"], pod.labels)]
        assert [pod.name for pod in chosen] == [name]
    for name, budget in of_kind("PodDisruptionBudget").items():
        assert budget["spec"]["selector"] == deployments[name]["spec"]["selector"]
        assert budget["spec"]["maxUnavailable"] == 1
    assert of_kind("PodDisruptionBudget").keys() == {f"metering-{role}" for role in ROLES}
    (service,) = of_kind("Service").values()
    assert service["spec"]["selector"] == deployments["metering-api"]["spec"]["selector"]["matchLabels"]
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in PODS["metering-api"].ports()
    for policy in of_kind("NetworkPolicy").values():
        for each in policy["spec"]["podSelector"].get("matchExpressions", []):
            assert each["key"] == COMPONENT
            assert set(each["values"]) <= {pod.component for pod in PODS.values()}


def test_the_autoscaler_follows_a_metric_that_there_is_and_alone_says_how_many() -> None:
    (scaler,) = (each["spec"] for each in of_kind("HorizontalPodAutoscaler").values())
    target = of_kind(scaler["scaleTargetRef"]["kind"])[scaler["scaleTargetRef"]["name"]]
    assert target["metadata"]["name"] == "metering-meter"
    assert "replicas" not in target["spec"]
    (metric,) = scaler["metrics"]
    name = metric["external"]["metric"]["name"]
    assert name == "metering_stream_lag_events"
    assert METRICS[name] == {"jobs"}
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    (rule,) = next(block["rules"]["external"] for block in blocks if "rules" in block)
    assert rule["seriesQuery"] == f'{name}{{namespace!=""}}'
    # Each jobs process exports the whole stream's: a sum would be as many times too high.
    assert rule["metricsQuery"] == "max(<<.Series>>{<<.LabelMatchers>>})"


def test_the_page_says_what_was_tried_and_what_was_not() -> None:
    assert "validated" in PAGE
    assert "never applied to a cluster" in PAGE
    assert f"{VERSIONS[0]} to {VERSIONS[-1]}" in PAGE
    for label in ("metering.api=allowed", "metering.metrics=allowed"):
        assert label in PAGE

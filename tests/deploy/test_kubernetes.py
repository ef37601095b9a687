"""The Kubernetes overlays: they build, Kubernetes' schemas take them, and they keep step with the code."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from dicom_node.dispatch import QUEUES
from tests.deploy import drift
from tests.deploy.drift import DEPLOY, IMAGES, VERSION
from tests.deploy.kustomize import build, containers, key, merge, pod
from worker.settings import Settings

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
OLDEST, NEWEST = "1.29.0", kubernetes_validate.latest_version()
KEDA = json.loads((Path(__file__).parent / "keda.schema.json").read_text())
DEFAULTS = Settings.model_construct(**{name: field.default for name, field in Settings.model_fields.items()})
METRICS = (9464, 9465, 9466)
"""Of node, worker and deliverer, as the files in deploy/monitoring have them."""

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def built(overlay: str) -> list[dict[str, Any]]:
    return build(KUBERNETES / "overlays" / overlay)


def one_of(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in objects if key(one) == (kind, name)]
    return found


def test_the_overlays_are_the_ones_of_the_readme():
    """A fixed number of workers, one for each card, and two ways by load."""
    assert OVERLAYS == ["cpu", "gpu", "hpa", "keda"]
    text = (KUBERNETES / "README.md").read_text()
    assert all(f"`{overlay}`" in text for overlay in OVERLAYS)


@pytest.mark.parametrize("file", sorted(KUBERNETES.rglob("kustomization.yaml")), ids=lambda f: f.parent.name)
def test_every_file_beside_a_kustomization_is_named_in_it(file):
    """One that is not is shipped and never applied."""
    text = file.read_text()
    others = [one.name for one in file.parent.iterdir() if one.is_file() and one != file]
    assert [name for name in others if name not in text] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@overlays
def test_every_object_is_one_that_the_api_takes(overlay, version):
    """By the schemas of an old Kubernetes and of the newest; of KEDA by what we use of it."""
    for one in built(overlay):
        if one["apiVersion"].startswith("keda.sh/"):
            jsonschema.validate(one, KEDA, cls=jsonschema.Draft202012Validator)
        else:
            kubernetes_validate.validate(one, version, strict=True)


@overlays
def test_every_pod_is_restricted(overlay):
    """What the `restricted` Pod Security Standard asks for, a read-only root, and an end to the memory."""
    objects = built(overlay)
    namespace = one_of(objects, "Namespace", "covariance")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = [specification for one in objects if (specification := pod(one))]
    assert len(pods) == 5
    for specification in pods:
        assert specification["securityContext"]["runAsNonRoot"] is True
        assert specification["securityContext"]["runAsUser"] == 10001
        assert specification["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert specification["automountServiceAccountToken"] is False
        for container in specification["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@overlays
def test_every_container_follows_code_and_images(overlay):
    """Images and tags, commands and probes, variables, places and ports."""
    for container in (c for one in built(overlay) for c in containers(one)):
        image = re.fullmatch(r"registry\.example/covariance/([a-z-]+):(.+)", container["image"])
        assert image, container["image"]
        assert image[1] in IMAGES
        assert image[2] == VERSION
        assert "command" not in container, "the images' entry point is tini"
        if container["args"] != ["sleep", "infinity"]:  # ops: commands are run in it
            drift.refuse_unknown_command(container["args"])
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            if command := container.get(probe, {}).get("exec", {}).get("command"):
                drift.refuse_unknown_command(command)
        assert drift.unknown_variables(" ".join(one["name"] for one in container["env"])) == set()
        ports = {one["containerPort"] for one in container.get("ports", [])}
        assert ports <= {DEFAULTS.node.port, DEFAULTS.tls.port, *METRICS}


@overlays
def test_everything_that_a_pod_names_is_there(overlay):
    """Volumes, claims, settings, accounts; and the secrets are settings that the README says how to make."""
    objects = built(overlay)
    names = {key(one) for one in objects}
    readme = (KUBERNETES / "README.md").read_text()
    for specification in (s for one in objects if (s := pod(one))):
        assert ("ServiceAccount", specification["serviceAccountName"]) in names
        volumes = {one["name"]: one for one in specification["volumes"]}
        for container in specification["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            for mount in container["volumeMounts"]:
                _is_where_the_program_looks(mount, volumes[mount["name"]], container)
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in names
            if settings := volume.get("configMap"):
                assert ("ConfigMap", settings["name"]) in names
            if secret := volume.get("secret"):
                assert f"create secret generic {secret['secretName']} " in readme
                assert all(drift.is_setting(item["path"]) for item in secret.get("items", []))
    assert all(drift.is_setting(name) for name in re.findall(r"--from-file=(\w+__\w+)", readme))


def _is_where_the_program_looks(
    mount: dict[str, Any], volume: dict[str, Any], container: dict[str, Any]
) -> None:
    variables = {one["name"]: one["value"] for one in container["env"]}
    if "configMap" in volume:
        assert Path(variables["COVARIANCE_CONFIG"]).parent == Path(mount["mountPath"])
    elif "secret" in volume:
        assert variables["COVARIANCE_SECRETS"] == mount["mountPath"]
    elif mount["mountPath"] != "/tmp":
        places = [argument for image in ("base", "ops") for _, argument in drift.instructions(image)]
        assert any(mount["mountPath"] in place for place in places)


def test_the_settings_are_of_this_version():
    """Every key in them is a setting, and the file is the one that the pods read."""
    settings = drift.toml_is_of_the_settings(KUBERNETES / "base/covariance.toml")
    assert settings.destinations[0].port == 104
    told = settings.metrics
    assert (told.host, (told.node_port, told.worker_port, told.deliver_port)) == ("0.0.0.0", METRICS)
    services = {one["metadata"]["name"] for one in built("cpu") if one["kind"] == "Service"}
    assert settings.heartbeat.host in services
    (generated,) = [one for one in built("cpu") if one["kind"] == "ConfigMap"]
    assert set(generated["data"]) == {"covariance.toml"}


@overlays
def test_selectors_find_their_pods(overlay):
    """Services, budgets and policies select pods that are there, at ports that they have."""
    objects = built(overlay)
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in objects if pod(one)]
    apps = {one["app.kubernetes.io/name"] for one in labels}
    for one in objects:
        specification = one.get("spec", {})
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert specification["selector"]["matchLabels"] == specification["template"]["metadata"]["labels"]
        if one["kind"] == "PodDisruptionBudget":
            assert specification["selector"]["matchLabels"] in labels
        if one["kind"] == "Service":
            assert specification["selector"] in labels
            named = {port["name"] for port in containers(one_of(objects, "StatefulSet", "node"))[0]["ports"]}
            assert {port["targetPort"] for port in specification["ports"]} <= named
        if one["kind"] == "NetworkPolicy":
            chosen = specification["podSelector"]
            for expression in chosen.get("matchExpressions", []):
                assert set(expression["values"]) <= apps
            assert not chosen.get("matchLabels") or chosen["matchLabels"] in labels


@overlays
def test_only_pacs_database_and_broker_are_reached(overlay):
    """All is refused first; then the ports of what a process talks to, and to addresses that are named."""
    policies = [one["spec"] for one in built(overlay) if one["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    allowed = set()
    for policy in policies:
        for way, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy.get(way, []):
                assert rule[peers]
                assert rule["ports"]
                assert all(one["ipBlock"]["cidr"] != "0.0.0.0/0" for one in rule[peers] if "ipBlock" in one)
                allowed |= {(way, port["port"]) for port in rule["ports"]}
    destination = tomllib.loads((KUBERNETES / "base/covariance.toml").read_text())["destinations"][0]["port"]
    assert allowed == {
        ("ingress", DEFAULTS.node.port),
        ("ingress", DEFAULTS.tls.port),
        ("egress", destination),
        *(("ingress", port) for port in METRICS),
        ("egress", DEFAULTS.node.port),
        ("egress", DEFAULTS.tls.port),
        ("egress", 5432),
        ("egress", 6379),
        ("egress", 53),
    }


def test_a_worker_of_the_gpu_overlay_has_one_card():
    """Asked for and limited alike, as Kubernetes wants it for what cannot be shared."""
    (container,) = containers(one_of(built("gpu"), "Deployment", "worker"))
    assert "worker-gpu" in container["image"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["args"] == ["covariance", "worker"]


@pytest.mark.parametrize("overlay", ["keda", "hpa"])
def test_who_scales_is_alone(overlay):
    """The number of workers stands in one place: where an autoscaler sets it, the Deployment says nothing."""
    objects = built(overlay)
    assert "replicas" not in one_of(objects, "Deployment", "worker")["spec"]
    kind = {"keda": "ScaledObject", "hpa": "HorizontalPodAutoscaler"}[overlay]
    scaler = one_of(objects, kind, "worker")["spec"]
    assert ("Deployment", scaler["scaleTargetRef"]["name"]) in {key(one) for one in objects}


def test_keda_counts_the_list_that_the_node_rings():
    """The keys in Redis are the prefix of the settings and the names of the queues, one for each lane."""
    objects = built("keda")
    triggers = one_of(objects, "ScaledObject", "worker")["spec"]["triggers"]
    counted = [trigger["metadata"]["listName"] for trigger in triggers]
    assert counted == [f"{DEFAULTS.queue.prefix}{queue}" for queue in QUEUES.values()]
    for trigger in triggers:
        assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in {
            key(one) for one in objects
        }
    assert "covariance-keda" in (KUBERNETES / "README.md").read_text()


def test_a_patch_for_an_object_that_is_not_there_is_noticed(tmp_path):
    """Else a typing error in an overlay would change nothing in silence."""
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]\npatches: [{path: p.yaml}]\n")
    (tmp_path / "a.yaml").write_text("kind: ConfigMap\nmetadata: {name: a}\n")
    (tmp_path / "p.yaml").write_text("kind: ConfigMap\nmetadata: {name: b}\n")
    with pytest.raises(ValueError, match="unpack"):
        build(tmp_path)


def test_a_merge_is_strategic():
    """Containers by name, null takes away, other lists are replaced."""
    below = {"replicas": 2, "containers": [{"name": "a", "args": ["x"], "image": "i"}]}
    above = {"replicas": None, "containers": [{"name": "a", "args": ["y"]}]}
    assert merge(below, above) == {"containers": [{"name": "a", "args": ["y"], "image": "i"}]}

"""What `kustomize build` makes of our overlays, as far as they use it; anything else is refused.

Resources, strategic merges from files, images, generated ConfigMaps (without the hash), namespace, labels. A
file that is not there, a patch whose object is not there and a key that is not known here are errors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy.drift import documents

Object = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "patches", "configMapGenerator", "images"}
_MERGED_BY = {
    "containers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists that a strategic merge goes into, and the key of their elements."""
_POD_KINDS = {"Deployment", "StatefulSet", "Job"}


def build(folder: Path) -> list[Object]:
    """The objects that an overlay or a base makes."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    if unknown := set(kustomization) - _KNOWN:
        raise ValueError(f"{folder.name}: {sorted(unknown)} is not understood")
    objects = list(_resources(folder, kustomization))
    for patch in kustomization.get("patches", []):
        for one in documents(folder / patch["path"]):
            (target,) = [o for o in objects if key(o) == key(one)]
            merged = merge(target, one)
            target.clear()
            target.update(merged)
    _transform(objects, kustomization)
    keys = [key(one) for one in objects]
    if len(set(keys)) != len(keys):
        raise ValueError(f"{folder.name}: two objects have the same name")
    return objects


def _resources(folder: Path, kustomization: Object) -> Iterator[Object]:
    for name in kustomization.get("resources", []):
        path = (folder / name).resolve(strict=True)
        yield from build(path) if path.is_dir() else documents(path)
    for generator in kustomization.get("configMapGenerator", []):
        data = {file: (folder / file).read_text() for file in generator["files"]}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}


def _transform(objects: list[Object], kustomization: Object) -> None:
    images = kustomization.get("images", [])
    renamed = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in images}
    for one in objects:
        if (namespace := kustomization.get("namespace")) and one["kind"] != "Namespace":
            one["metadata"]["namespace"] = namespace
        for labels in kustomization.get("labels", []):
            one["metadata"].setdefault("labels", {}).update(labels["pairs"])
        for container in containers(one):
            container["image"] = renamed.get(container["image"], container["image"])


def key(one: Object) -> tuple[str, str]:
    """Kind and name."""
    return one["kind"], one["metadata"]["name"]


def pod(one: Object) -> Object | None:
    """The pod's specification of an object that has one."""
    return one["spec"]["template"]["spec"] if one["kind"] in _POD_KINDS else None


def containers(one: Object) -> list[Object]:
    """The containers of an object, those that initialise included."""
    specification = pod(one) or {}
    return [*specification.get("initContainers", []), *specification.get("containers", [])]


def merge(below: Any, above: Any, name: str = "") -> Any:
    """A strategic merge: mappings and known lists by key, null takes away, everything else replaces."""
    if isinstance(below, dict) and isinstance(above, dict):
        whole = {k: merge(below.get(k), v, k) for k, v in above.items() if v is not None}
        return {**{k: copy.deepcopy(v) for k, v in below.items() if k not in above}, **whole}
    if isinstance(below, list) and isinstance(above, list) and name in _MERGED_BY:
        by = _MERGED_BY[name]
        added = {one[by]: one for one in above}
        kept = [merge(one, added.pop(one[by], {}), "") for one in below]
        return kept + list(added.values())
    return copy.deepcopy(above)

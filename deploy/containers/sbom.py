"""Writes a bill of materials (CycloneDX) of each built image: its Python packages and its Debian packages.

    .venv/bin/python deploy/containers/sbom.py node ops worker-cpu        # -> build/sbom-IMAGE.cdx.json

The images are those that `deploy/containers/build` made with buildah; it needs root, as that does.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).parents[2]
STORAGE = Path(os.environ.get("STORAGE", "/var/tmp/covariance-images"))  # noqa: S108 (root's, and named in `build`)
REGISTRY = os.environ.get("REGISTRY", "localhost/covariance")
BUILDAH = ["buildah", "--storage-driver", "vfs", "--root", f"{STORAGE}/root", "--runroot", f"{STORAGE}/run"]


def run(*command: str) -> str:
    """What a command prints; it must end well."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def python_packages(root: Path, target: Path) -> dict[str, Any]:
    """The bill of the virtual environment inside."""
    (packages,) = root.glob("opt/covariance/lib/python3*/site-packages")
    # cyclonedx-py asks an interpreter for its path, and the one inside would name places inside.
    asked = target.with_suffix(".python")
    asked.write_text(f"#!/bin/sh\necho '{json.dumps([str(packages)])}'\n")
    asked.chmod(0o755)
    tool = str(Path(sys.executable).with_name("cyclonedx-py"))
    options = [
        "--pyproject",
        str(ROOT / "pyproject.toml"),
        "--mc-type",
        "application",
        "--output-reproducible",
    ]
    try:
        run(tool, "environment", *options, "--output-file", str(target), str(asked))
    finally:
        asked.unlink()
    bill: dict[str, Any] = json.loads(target.read_text())
    return bill


def debian_packages(root: Path) -> list[dict[str, Any]]:
    """What dpkg knows inside."""
    form = "${binary:Package}\t${Version}\t${Architecture}\n"
    lines = run("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", f"--showformat={form}")
    made = []
    for name, version, architecture in (line.split("\t") for line in lines.splitlines()):
        purl = f"pkg:deb/debian/{name.partition(':')[0]}@{quote(version)}?arch={architecture}"
        made.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return made


def write(image: str, version: str) -> Path:
    """Write the bill of one image, and see that it is one.

    Raises:
        ValueError: what was made is not CycloneDX.
    """
    target = ROOT / "build" / f"sbom-{image}.cdx.json"
    target.parent.mkdir(exist_ok=True)
    container = run(*BUILDAH, "from", "--pull-never", f"{REGISTRY}/{image}:{version}")
    try:
        root = Path(run(*BUILDAH, "mount", container))
        bill = python_packages(root, target)
        bill["components"] = [*bill["components"], *debian_packages(root)]
    finally:
        run(*BUILDAH, "rm", container)
    bill["metadata"]["component"]["name"] = f"{REGISTRY}/{image}:{version}"
    bill["metadata"]["component"]["type"] = "container"
    text = json.dumps(bill, indent=2, sort_keys=True)
    # Of the group `security`, which the checks of the types do without.
    validation = importlib.import_module("cyclonedx.validation.json")
    schema = importlib.import_module("cyclonedx.schema").SchemaVersion.from_version(bill["specVersion"])
    if fault := validation.JsonStrictValidator(schema).validate_str(text):
        raise ValueError(f"the bill of {image} is not CycloneDX: {fault}")
    target.write_text(text + "\n")
    return target


def main() -> None:
    """Write the bills of the images that are named."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for image in sys.argv[1:]:
        target = write(image, version)
        count = len(json.loads(target.read_text())["components"])
        sys.stdout.write(f"Written: {target.relative_to(ROOT)} ({count} components)\n")


if __name__ == "__main__":
    main()

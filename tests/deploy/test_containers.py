"""The Containerfiles: what they name exists, what is pinned is pinned, and all are alike where they must."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from deploy.up import _FINISH_STUDY_SECONDS
from tests.deploy import drift
from tests.deploy.drift import DEPLOY, IMAGES, ROOT, VERSION, instructions
from worker.settings import Settings

FINAL = sorted(IMAGES - {"base", "builder"})
CONTAINERS = DEPLOY / "containers"
LOCK = {one["name"]: one for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}


def exported(*arguments: str) -> set[str]:
    """The packages that the lock gives for these arguments of `uv export`."""
    command = [str(ROOT / ".venv/bin/uv"), "export", "--frozen", "--quiet", "--no-default-groups"]
    done = subprocess.run(
        [*command, "--no-emit-project", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {line.partition("==")[0] for line in done.stdout.splitlines() if "==" in line}


def arguments_of(image: str) -> list[str]:
    (line,) = [
        argument for name, argument in instructions(image) if "install-locked" in argument and name == "RUN"
    ]
    return line.partition("install-locked")[2].split()


def test_the_images_are_the_ones_of_the_design():
    """Four images that run, and what they are made of."""
    assert {"node", "worker-cpu", "worker-gpu", "ops"} == set(FINAL)


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_every_variable_of_an_image_is_a_setting(image):
    """A variable that sets nothing is a typing error that nobody sees."""
    text = (CONTAINERS / f"{image}.Containerfile").read_text()
    assert drift.unknown_variables(text) == set()


@pytest.mark.parametrize("image", FINAL)
def test_every_command_of_an_image_is_one_of_ours(image):
    """CMD and HEALTHCHECK run commands that exist, with arguments that they take."""
    found = re.findall(r'\[("covariance".*?)\]', "\n".join(f"{n} {a}" for n, a in instructions(image)))
    assert len(found) == 2
    for words in found:
        command = json.loads(f"[{words}]")
        if command[1:] != ["--help"]:
            drift.refuse_unknown_command(command)


@pytest.mark.parametrize("image", FINAL)
def test_an_image_runs_as_nobody_and_tells_its_health(image):
    """A fixed user, an init that passes signals on, a health check, labels, and no compiler at the end."""
    last, settled = [], {}
    for name, argument in [*instructions("base"), *instructions(image)]:
        last = [] if name == "FROM" else last
        last.append((name, argument))
        settled[name] = argument
    assert settled["USER"] == "10001:10001"
    assert settled["ENTRYPOINT"] == '["/usr/bin/tini", "--"]'
    assert "HEALTHCHECK" in settled
    assert settled["STOPSIGNAL"] == "SIGTERM"
    labels = " ".join(argument for name, argument in last if name == "LABEL")
    assert "org.opencontainers.image.title" in labels
    assert "not a medical device" in labels
    for unwanted in ("gcc", "build-essential", "python3-pip", "python3-venv", "-dev "):
        assert unwanted not in " ".join(argument for name, argument in last if name == "RUN")


def test_ports_and_places_are_those_of_the_settings():
    """EXPOSE and VOLUME follow the settings' defaults and the variables of the base."""
    node = dict(instructions("node"))
    settings = Settings.model_construct(**{n: f.default for n, f in Settings.model_fields.items()})
    assert node["EXPOSE"].split() == [str(settings.node.port), str(settings.tls.port)]
    (environment,) = [argument for name, argument in instructions("base") if name == "ENV"]
    assert f"COVARIANCE_SPOOL__PATH={node['VOLUME']}" in environment


def test_the_gpu_image_has_the_environment_of_the_others():
    """It stands on another base, so that what the base says is said there again."""
    (base,) = [set(argument.split()) for name, argument in instructions("base") if name == "ENV"]
    last = [argument for name, argument in instructions("worker-gpu") if name == "ENV"][-1]
    assert base <= set(last.split())
    users = [
        next(a for n, a in instructions(image) if n == "RUN" and "useradd" in a)
        for image in ("base", "worker-gpu")
    ]
    assert all("useradd --uid 10001 --gid 10001" in one for one in users)


def test_the_node_has_nothing_that_it_does_not_run():
    """No engine, no database, no arrays; and what is pruned is in the lock."""
    packages = exported(*arguments_of("node"))
    assert packages.isdisjoint(
        {
            "openvino",
            "highdicom",
            "opencv-python-headless",
            "sqlalchemy",
            "alembic",
            "numpy",
            "pillow",
            "torch",
        }
    )
    assert {"pydicom", "pynetdicom", "celery", "redis", "cryptography", "structlog", "typer"} <= packages
    pruned = [word for word in arguments_of("node") if not word.startswith("-")]
    assert set(pruned) <= set(LOCK)


def test_the_node_has_all_that_it_runs():
    """Every package that a module of `dicom_node` imports, found in its source, is installed."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "dicom_node").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    tops = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"dicom_node"}
    owners = {re.sub(r"[-_.]+", "-", name).lower() for top in tops for name in packages_distributions()[top]}
    missing = owners - exported(*arguments_of("node"))
    # Traces need an extra, and what loads it says so in a sentence.
    assert {name for name in missing if not name.startswith("opentelemetry")} == set()


def test_each_worker_has_its_engine_and_no_other_extras():
    """The CPU image carries OpenVINO, the GPU image TensorRT, neither torch; ops carries no engine."""
    cpu, ops = exported(*arguments_of("worker-cpu")), exported(*arguments_of("ops"))
    gpu = exported(*arguments_of("worker-gpu"))
    assert "openvino" in cpu
    assert "tensorrt" in gpu
    assert ops.isdisjoint({"openvino", "highdicom", "tensorrt"})
    assert "psycopg" in cpu & gpu & ops
    assert "torch" not in cpu | gpu | ops


def test_what_builds_the_images_is_what_the_project_uses():
    """uv as in the Makefile, setuptools as in the lock, both with a hash of the lock or of PyPI."""
    pinned = dict(
        re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", (CONTAINERS / "uv.txt").read_text(), re.M)
    )
    (uv,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert pinned == {"uv": uv, "setuptools": LOCK["setuptools"]["version"]}
    assert any(
        wheel["hash"].partition(":")[2] in (CONTAINERS / "uv.txt").read_text()
        for wheel in LOCK["setuptools"]["wheels"]
    )


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_versions_are_the_projects_and_bases_are_pinned(image):
    """No `latest`, and the version of the package."""
    for name, argument in instructions(image):
        if name == "ARG" and argument.startswith("VERSION="):
            assert argument == f"VERSION={VERSION}"
        if name == "ARG" and argument.startswith(("DEBIAN=", "CUDA=")):
            assert re.search(r":[a-z]*-?\d[\w.-]+$", argument), argument


def test_a_build_notes_what_it_was_made_of(tmp_path):
    """Tags move: with an engine that only answers, the digests of image and base are written down."""
    for one in ("pyproject.toml", "deploy/containers"):
        (tmp_path / one).parent.mkdir(exist_ok=True)
        (tmp_path / one).symlink_to(ROOT / one)
    (tmp_path / "bin").mkdir()
    engine = tmp_path / "bin/docker"
    engine.write_text('#!/bin/sh\n[ "$1" = image ] && echo "${5%%:*}@sha256:beef"\nexit 0\n')
    engine.chmod(0o755)
    environment = {**os.environ, "ENGINE": "docker", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    build = tmp_path / "deploy/containers/build"
    subprocess.run([str(build), "base", "node"], env=environment, check=True, capture_output=True)
    base, node = ((tmp_path / "build/images" / name).read_text().split() for name in ("base", "node"))
    ours = f"localhost/covariance/base:{VERSION}"
    assert base[:3] == [ours, "localhost/covariance/base@sha256:beef", "from"]
    assert re.fullmatch(
        r"docker.io/library/debian:\S+ docker.io/library/debian@sha256:beef", " ".join(base[3:])
    )
    assert node[2:4] == ["from", ours]


def test_the_context_holds_no_secret_and_no_film():
    """Everything is left out but what an image is made of; Docker and Podman read the same list."""
    lines = (ROOT / ".containerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert allowed == {"pyproject.toml", "uv.lock", "README.md", "LICENSE", "dicom_node", "worker", "deploy"}
    assert "deploy/compose" in lines
    assert (ROOT / ".dockerignore").resolve() == ROOT / ".containerignore"


def test_a_worker_may_finish_its_study_before_it_is_killed():
    """The grace that platforms give is no shorter than what `covariance up` gives."""
    compose = drift.documents(DEPLOY / "compose/compose.yaml")[0]
    assert (
        float(compose["services"]["worker"]["stop_grace_period"].removesuffix("s")) >= _FINISH_STUDY_SECONDS
    )
    (worker,) = drift.documents(DEPLOY / "kubernetes/base/worker.yaml")
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= _FINISH_STUDY_SECONDS


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_no_variable_of_an_image_hides_a_secret(image):
    """A variable goes before a secret: what a site hands over as a file must not be set by the image."""
    secrets = drift.documents(DEPLOY / "compose/compose.yaml")[0]["secrets"]
    environment = " ".join(argument for name, argument in instructions(image) if name == "ENV")
    assert not [name for name in secrets if f"COVARIANCE_{name.upper()}=" in environment]

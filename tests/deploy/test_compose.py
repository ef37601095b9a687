"""The compose files: of Compose's form, hardened, in step with settings, commands and images."""

from __future__ import annotations

import copy
import itertools
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dicom_node.secret_files import SecretFiles
from dicom_node.settings import SECRETS_DIRECTORY
from tests.deploy import drift
from tests.deploy.drift import DEPLOY, IMAGES, VERSION
from worker.settings import Settings, load_settings

COMPOSE = DEPLOY / "compose"
FILES = sorted(file.stem for file in COMPOSE.glob("*.yaml"))
OURS = re.compile(r"localhost/covariance/([a-z-]+):(.+)")


def read(name: str) -> dict[str, Any]:
    (document,) = drift.documents(COMPOSE / f"{name}.yaml")
    return document


def merged(*names: str) -> dict[str, Any]:
    """The files laid over one another as Compose does with ours: mappings by key, the rest replaced."""
    whole: dict[str, Any] = {}
    for name in names:
        document = read(name)
        for service in document["services"].values():
            if parent := service.pop("extends", None):
                (base,) = drift.documents(COMPOSE / parent["file"])
                service.update(_over(copy.deepcopy(base["services"][parent["service"]]), service))
        whole = _over(whole, document)
    return whole


def _over(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {
            key: _over(below.get(key), above[key]) if key in above else below[key]
            for key in {**below, **above}
        }
    return copy.deepcopy(above)


STACKS = [("compose",), ("compose", "gpu"), ("compose", "tryout")]
stacks = pytest.mark.parametrize("names", STACKS, ids="+".join)


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_form_that_compose_takes(name):
    """The published schema of the Compose specification, as it comes with check-jsonschema; no network."""
    command = [str(Path(sys.executable).with_name("check-jsonschema"))]
    command += ["--builtin-schema", "vendor.compose-spec", str(COMPOSE / f"{name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_image_is_pinned_or_says_why_not(name):
    """By digest, or with the words beside its tag that say where a digest comes from; never `latest`."""
    lines = (COMPOSE / f"{name}.yaml").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if line.strip().startswith("image: docker.io/"):
            assert "@sha256:" in line or "README.md says how to pin it" in before, line
            assert re.search(r":\d", line), line


@stacks
def test_every_service_is_hardened(names):
    """Read-only, no capability, no new privileges, not root, pinned, and with an end to its memory."""
    for name, service in merged(*names)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert service["mem_limit"], name
        assert service["restart"], name
        assert re.search(r":\d+\.\d+", service["image"]), f"{name} is not pinned"
        assert all("noexec" in one or one.startswith("/run/") for one in service["tmpfs"]), name
        if name != "orthanc":
            assert service["user"] not in ("0", "root", "0:0"), name
            assert "healthcheck" in service or service["restart"] == "no", name


@stacks
def test_our_services_follow_code_and_images(names):
    """Images, tags, commands, health checks, variables, ports and places are those of the code."""
    settings = Settings.model_construct(**{n: f.default for n, f in Settings.model_fields.items()})
    for name, service in merged(*names)["services"].items():
        if not (image := OURS.fullmatch(service["image"])):
            continue
        assert image[1] in IMAGES
        assert image[2] == VERSION
        command = service["command"]
        drift.refuse_unknown_command(command if command[0] == "covariance" else ["covariance", *command])
        if check := service.get("healthcheck"):
            assert check["test"][0] == "CMD"
            drift.refuse_unknown_command(check["test"][1:])
        assert drift.unknown_variables("\n".join(service["environment"])) == set()
        for volume in service["volumes"]:
            place = volume.split(":")[1]
            assert any(
                place in argument
                for one in ("base", image[1])
                for instruction, argument in drift.instructions(one)
                if instruction in ("ENV", "VOLUME")
            ), f"{name}: no image of ours writes to {place}"
        for published in service.get("ports", []):
            assert int(published.rpartition(":")[2]) in (settings.node.port, settings.tls.port)


@stacks
def test_everything_that_a_service_names_is_there(names):
    """Networks, volumes, secrets, configs and dependencies; and nothing is there for nobody."""
    whole = merged(*names)
    used: dict[str, set[str]] = {"secrets": set(), "configs": set(), "networks": set(), "volumes": set()}
    for service in whole["services"].values():
        for kind in ("secrets", "configs"):
            used[kind] |= {one if isinstance(one, str) else one["source"] for one in service.get(kind, [])}
        used["networks"] |= set(service["networks"])
        used["volumes"] |= {one.partition(":")[0] for one in service.get("volumes", [])}
        assert set(service.get("depends_on", {})) <= set(whole["services"])
    for kind, names_of in used.items():
        assert names_of <= set(whole[kind])
        if names == ("compose",):
            assert names_of == set(whole[kind])
    for config in whole["configs"].values():
        assert (COMPOSE / config["file"]).is_file()


def test_database_and_broker_are_reached_from_within_only():
    """They publish no port and stand on a network that leads nowhere."""
    whole = read("compose")
    assert whole["networks"]["inside"]["internal"] is True
    for name in ("postgres", "redis"):
        assert whole["services"][name]["networks"] == ["inside"]
        assert "ports" not in whole["services"][name]
    assert whole["services"]["worker"]["networks"] == ["inside"]


def test_each_card_has_a_worker_and_an_engine_cache_of_its_own():
    """Two workers on one card, or with one cache, would get in each other's way."""
    services = {n: s for n, s in merged("compose", "gpu")["services"].items() if "worker-gpu" in s["image"]}
    assert len(services) == 2
    devices = [s["deploy"]["resources"]["reservations"]["devices"][0] for s in services.values()]
    assert len({tuple(one["device_ids"]) for one in devices}) == 2
    assert all(one["driver"] == "nvidia" and one["capabilities"] == ["gpu"] for one in devices)
    caches = [v for s in services.values() for v in s["volumes"] if v.startswith("engine-cache")]
    assert len({one.partition(":")[0] for one in caches}) == 2
    assert merged("compose", "gpu")["services"]["worker"]["deploy"]["replicas"] == 0


@pytest.mark.parametrize("file", sorted((COMPOSE / "settings").glob("*.toml")), ids=lambda file: file.name)
def test_the_settings_files_are_of_this_version(file):
    """Every key in them is a setting, and they say where results go."""
    assert drift.toml_is_of_the_settings(file).destinations


def test_the_orthanc_of_the_try_out_and_our_node_know_each_other():
    """AE titles, ports and hosts on both sides."""
    services = merged("compose", "tryout")["services"]
    orthanc = tomllib.loads((COMPOSE / "settings/tryout.toml").read_text())["destinations"][0]
    import json

    configured = json.loads((COMPOSE / "settings/orthanc.json").read_text())
    assert orthanc["host"] in services
    assert (orthanc["ae_title"], orthanc["port"]) == (configured["DicomAet"], configured["DicomPort"])
    ours = configured["DicomModalities"]["covariance"]
    assert ours["Host"] in services
    node = Settings.model_fields["node"].default
    assert (ours["AET"], ours["Port"]) == (node.ae_title, node.port)


@pytest.fixture
def secrets(tmp_path):
    """What `make-secrets` makes."""
    folder = tmp_path / "secrets"
    subprocess.run([str(COMPOSE / "make-secrets"), str(folder)], check=True)
    return folder


def test_the_secrets_that_are_made_are_those_that_are_named(secrets):
    """Those of the compose file, no more; private by their folder, readable for the containers' users."""
    declared = {Path(one["file"]).name for one in read("compose")["secrets"].values()}
    assert {file.name for file in secrets.iterdir()} == declared
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets.iterdir()} == {0o444}


def test_the_secrets_fit_each_other_and_stay(secrets):
    """The passwords in the URLs are those of the servers, and a second run changes none."""
    content = {file.name: file.read_text() for file in secrets.iterdir()}
    assert f":{content['postgres_app'].strip()}@" in content["database__url"]
    assert f":{content['postgres_owner'].strip()}@" in content["database_owner__url"]
    (password,) = re.findall(r"^requirepass (.+)$", content["redis.conf"], re.MULTILINE)
    assert f":{password}@" in content["queue__url"]
    assert (
        len({content[name] for name in ("postgres_app", "postgres_owner", "database__patient_hash_key")}) == 3
    )
    subprocess.run([str(COMPOSE / "make-secrets"), str(secrets)], check=True)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == content


@pytest.mark.parametrize(
    "lost", ["redis.conf", "queue__url", "postgres_app", "database__url", "postgres_owner"]
)
def test_a_secret_that_was_lost_is_made_to_fit_the_others(lost, secrets):
    """A server and its clients have one password, whichever of the files is there no more."""
    content = {file.name: file.read_text() for file in secrets.iterdir()}
    (secrets / lost).unlink()
    subprocess.run([str(COMPOSE / "make-secrets"), str(secrets)], check=True)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == content


def test_what_ops_writes_outlives_it_and_the_server_is_one_that_its_client_takes():
    """Its places are volumes, no more and no less; pg_dump takes no server that is newer than itself."""
    services, (volumes,) = (
        read("compose")["services"],
        [a for n, a in drift.instructions("ops") if n == "VOLUME"],
    )
    mounted = {one.partition(":")[2] for one in services["ops"]["volumes"]}
    assert mounted == set(volumes.split())
    assert "postgresql-client" in " ".join(a for n, a in drift.instructions("ops") if n == "RUN")
    (debian,) = [a for n, a in drift.instructions("base") if n == "ARG" and a.startswith("DEBIAN=")]
    assert "bookworm" in debian  # whose client is 15
    assert re.search(r"/postgres:15\.", services["postgres"]["image"])


def test_workers_share_one_store_of_models():
    """Those on the CPU, those on cards, and `ops`: what one activates is what all take up."""
    for names in STACKS:
        for name, service in merged(*names)["services"].items():
            if name == "ops" or "worker" in service["image"]:
                assert "models:/var/lib/covariance/models" in service["volumes"], name


@pytest.mark.parametrize("name", ["node", "worker", "deliver", "migrate", "ops"])
def test_the_secrets_of_a_service_are_settings(name, secrets, monkeypatch, tmp_path):
    """The very directory that a container sees in /run/secrets makes settings."""
    seen = tmp_path / "run"
    seen.mkdir()
    for one in read("compose")["services"][name]["secrets"]:
        source, target = (one, one) if isinstance(one, str) else (one["source"], one["target"])
        (seen / target).write_bytes((secrets / source).read_bytes())
    monkeypatch.setenv(SECRETS_DIRECTORY, str(seen))
    assert SecretFiles(Settings, seen)()
    settings = load_settings()
    assert settings.database.url.startswith("postgresql" if name != "node" else "sqlite")
    if name == "migrate":
        assert "covariance_owner" in settings.database.url

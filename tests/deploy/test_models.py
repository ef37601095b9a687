"""The life of a model: installed, activated behind the parity gate and on record, rolled back."""

from __future__ import annotations

import json
import shutil

import pytest

from dicom_node.errors import ConfigurationError
from worker.bundle import Bundle, write_manifest
from worker.ledger import open_ledger
from worker.model_store import ModelStore, bundle_in_use, open_bundle_in_use
from worker.settings import DEFAULT_BUNDLE, Settings, WorkerSection


@pytest.fixture
def other(tmp_path):
    """A bundle of the same network, another version."""
    folder = tmp_path / "other"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    write_manifest(Bundle(folder).manifest.model_copy(update={"version": "2.0.0"}), folder)
    return folder


@pytest.fixture
def disagreeing(tmp_path):
    """A bundle whose golden cases say something else than its network."""
    folder = tmp_path / "disagreeing"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    manifest = Bundle(folder).manifest
    cases = tuple(one.model_copy(update={"logit": one.logit + 3}) for one in manifest.golden.cases)
    golden = manifest.golden.model_copy(update={"cases": cases})
    write_manifest(manifest.model_copy(update={"golden": golden}), folder)
    return folder


def test_a_model_is_installed_activated_and_rolled_back(invoke, other):
    """Each step is told and recorded, and a worker's next start finds what is in use."""
    digest, shipped = Bundle(other).sha256, Bundle(DEFAULT_BUNDLE).manifest
    assert f"as {digest}" in invoke("model", "install", other).output
    assert bundle_in_use(WorkerSection())[0] == DEFAULT_BUNDLE
    done = invoke("model", "activate", digest[:12])
    assert done.exit_code == 0, done.output
    assert f"agrees on {len(shipped.golden.cases)} golden cases" in done.output
    assert open_bundle_in_use(WorkerSection()).manifest.version == "2.0.0"
    listed = json.loads(invoke("model", "list", "--json").stdout)
    assert (listed["active"], [one["version"] for one in listed["bundles"]]) == (digest, ["2.0.0"])
    assert invoke("model", "rollback").exit_code == 0
    assert bundle_in_use(WorkerSection())[0] == DEFAULT_BUNDLE
    assert invoke("model", "rollback").exit_code == 0
    assert bundle_in_use(WorkerSection())[0] != DEFAULT_BUNDLE
    assert invoke("model", "activate", "shipped").exit_code == 0
    assert bundle_in_use(WorkerSection())[0] == DEFAULT_BUNDLE
    with open_ledger(Settings(), migrate=False) as ledger:
        events = [json.loads(one.body) for one in ledger.events_after(0, 10) if one.kind == "model_activated"]
    assert [(one["model"]["version"], one["before"]) for one in events] == [
        ("2.0.0", None),
        (shipped.version, digest),
        ("2.0.0", None),
        (shipped.version, digest),
    ]


def test_a_store_that_cannot_be_written_is_a_sentence(invoke, other, monkeypatch):
    """Installing into it names it, exit code 2."""
    monkeypatch.setenv("COVARIANCE_WORKER__MODELS", "/proc/models")
    done = invoke("model", "install", other)
    assert done.exit_code == 2
    assert "The model store /proc/models cannot be written" in done.stderr


def test_a_list_does_not_change_the_schema(invoke, other):
    """Before the first migration it lists all the same, and says what it does not know."""
    invoke("model", "install", other)
    done = invoke("model", "list")
    assert done.exit_code == 0
    assert "Which were recalled is not known." in done.output
    with pytest.raises(ConfigurationError, match="covariance migrate"):
        open_ledger(Settings(), migrate=False)


def test_a_model_that_does_not_pass_the_gate_stays_out(invoke, disagreeing):
    """The engine of this machine does not agree with it: exit code 2, and nothing is in use."""
    digest = Bundle(disagreeing).sha256
    assert invoke("model", "install", disagreeing).exit_code == 0
    done = invoke("model", "activate", digest[:12])
    assert done.exit_code == 2
    assert "does not agree with the model" in done.stderr
    assert ModelStore(WorkerSection().models).active is None


def test_a_recalled_model_is_not_activated(invoke, other):
    """Neither it nor anything with the same network."""
    invoke("model", "install", other)
    with open_ledger(Settings(), migrate=True) as ledger:
        ledger.recall_model(Bundle(other).manifest.model.sha256, "Wrong labels.")
    done = invoke("model", "activate", Bundle(other).sha256[:12])
    assert done.exit_code == 2
    assert "Wrong labels." in done.stderr


def test_a_damaged_bundle_is_found_and_never_used(tmp_path, other):
    """One byte of the network is enough."""
    store = ModelStore(tmp_path / "models")
    stored = store.install(other)
    assert store.install(other) == stored
    store.activate(stored.bundle_sha256)
    network = tmp_path / "models" / stored.bundle_sha256 / Bundle(other).manifest.model.name
    content = bytearray(network.read_bytes())
    content[-1] ^= 1
    network.write_bytes(content)
    assert "is not the one that its manifest names" in store.bundles()[0].fault
    with pytest.raises(ConfigurationError):
        open_bundle_in_use(WorkerSection(models=tmp_path / "models"))


def test_a_bundle_of_the_settings_goes_before_the_store(invoke, tmp_path, other):
    """And `activate` then says so instead of doing nothing."""
    (tmp_path / "my.toml").write_text(f'[worker]\nbundle = "{other}"\n')
    invoke("model", "install", other)
    done = invoke("--config", "my.toml", "model", "activate", Bundle(other).sha256[:12])
    assert done.exit_code == 2
    assert "goes before the store" in done.stderr
    assert bundle_in_use(WorkerSection(bundle=other))[0] == other

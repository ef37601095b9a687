"""`quarantine`, `recall` and `reprocess`, over studies that were really scored and sent."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.deploy.site import STUDIES, film, scored_folder, site, spool_film  # noqa: F401 (fixtures)
from worker.bundle import Bundle, write_manifest
from worker.settings import DEFAULT_BUNDLE

CONFIG = ("--config", "covariance.toml")


@pytest.fixture
def run(invoke):
    """`run(*arguments)` runs the command with the settings of the site."""
    return lambda *arguments: invoke(*CONFIG, *arguments)


@pytest.fixture
def stricter(tmp_path):
    """A bundle of the same network with another threshold."""
    folder = tmp_path / "stricter"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    manifest = Bundle(folder).manifest
    point = manifest.operating_point.model_copy(update={"probability": 0.9, "name": "strict@dev"})
    write_manifest(manifest.model_copy(update={"version": "9.9.9", "operating_point": point}), folder)
    return folder


def test_recall_says_first_what_it_would_do(site, run):  # noqa: F811
    """Without --yes every result is listed, what would be sent is counted, and nothing changes."""
    site.deliver()
    digest = Bundle(DEFAULT_BUNDLE).manifest.model.sha256
    done = run("recall", "--model", digest[:12])
    assert done.exit_code == 0, done.output
    assert all(study in done.output for study in STUDIES)
    assert "2 rejection notes to iocm, 2 withdrawing reports to plain" in done.output
    with site.ledger() as ledger:
        assert ledger.recalled_models() == {}


def test_recall_reaches_every_pacs(site, run):  # noqa: F811
    """One PACS gets a Key Object Selection that names all objects, the other an SR; no worker goes on."""
    site.deliver()
    sent = {uid for _, uid in site.held("iocm", STUDIES[0])}
    digest = Bundle(DEFAULT_BUNDLE).manifest.model.sha256
    done = run("recall", "--model", digest, "--yes", "--rejected-for", "safety", "--because", "Wrong.")
    assert done.exit_code == 0, done.output
    assert "notices that the deliverer sends: 2 to iocm, 2 to plain" in done.output
    site.deliver()
    (note,) = (one for one in site.pacs["iocm"].held(STUDIES[0]) if one.modality == "KO")
    from pydicom import dcmread

    ds = dcmread(note.path, force=True)
    assert {str(i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for i in ds.ContentSequence[-2:]} == sent
    new = {uid: modality for modality, uid in site.held("plain", STUDIES[0]) if uid not in sent}
    assert list(new.values()) == ["SR"]
    again = run("recall", "--model", digest, "--yes")
    assert "0 of them not recalled yet" in again.output
    with site.ledger() as ledger:
        assert all(result.recalled_at for result in ledger.study(STUDIES[1]).results)
        assert ledger.verify().ok
    worker = run("worker")
    assert worker.exit_code == 2
    assert "was recalled: Wrong." in worker.stderr


def test_what_cannot_be_told_is_named(site, run):  # noqa: F811
    """Where no film is left, the objects are listed for people, and the exit code is 1."""
    site.deliver()
    shutil.rmtree(site.spool.root / "studies" / STUDIES[0])
    digest = Bundle(DEFAULT_BUNDLE).manifest.model.sha256
    done = run("recall", "--model", digest, "--yes")
    assert done.exit_code == 1
    assert f"by hand at iocm, plain: study {STUDIES[0]}" in done.output


def test_recall_of_no_known_model_is_refused(site, run):  # noqa: F811
    """A digest that is too short or unknown is exit code 2."""
    assert run("recall", "--model", "abc").exit_code == 2
    assert run("recall", "--model", "0" * 12).exit_code == 2


def test_reprocess_scores_with_the_bundle_that_is_named(site, run, stricter):  # noqa: F811
    """First it says what it would do; then the new results are in force, and are sent."""
    site.deliver()
    done = run("reprocess", STUDIES[0], "--bundle", stricter)
    assert "1 studies, 1 films would be scored again with densenet121-covid 9.9.9" in done.output
    done = run("reprocess", STUDIES[0], "--bundle", stricter, "--yes")
    assert done.exit_code == 0, done.output
    with site.ledger() as ledger:
        old, new = ledger.study(STUDIES[0]).results
        assert (new.model_version, new.threshold, new.superseded_at) == ("9.9.9", 0.9, None)
        assert old.superseded_at is not None
        assert len(ledger.study(STUDIES[1]).results) == 1
    site.deliver()
    assert len(site.held("plain", STUDIES[0])) == 4
    assert run("reprocess").exit_code == 2


def test_reprocess_of_nothing_opens_no_engine(site, run, monkeypatch):  # noqa: F811
    """A study that nobody scored is said to be none, whether or not it is meant."""
    monkeypatch.setattr("deploy.reprocess.Scorer", None)
    done = run("reprocess", "1.2.3", "--yes")
    assert (done.exit_code, done.output) == (0, "No study that was scored is meant: nothing is to be done.\n")


def test_quarantine_is_listed_and_released(site, run):  # noqa: F811
    """What could not be read is listed with its reason; released, it is ready again."""
    ds = film("1.2.840.73")
    spool_film(site.spool, ds)
    (path,) = (site.spool.root / "studies" / "1.2.840.73").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1000] + bytes(1000))
    assert run("reprocess", "1.2.840.73").exit_code == 0
    from worker.pipeline import Pipeline
    from worker.scorer import Scorer

    with Scorer(site.settings) as scorer, site.ledger() as ledger:
        Pipeline(
            settings=site.settings, spool=site.spool, ledger=ledger, scorer=scorer, worker="w"
        ).score_study("1.2.840.73")
    (listed,) = json.loads(run("quarantine", "list", "--json").stdout)
    assert (listed["study_instance_uid"], listed["reason"]) == ("1.2.840.73", "FILE_ALTERED")
    assert "1 FILE_ALTERED" in run("quarantine", "list").output
    path.write_bytes(content)
    assert run("quarantine", "release").exit_code == 2
    assert run("quarantine", "release", "--reason", "no").exit_code == 2
    assert run("quarantine", "release", "--reason", "file_altered").exit_code == 0
    assert "Quarantined: nothing." in run("quarantine", "list").output
    with site.ledger() as ledger:
        assert list(ledger.announceable()) == ["1.2.840.73"]

"""The way of a study through the stations, and what becomes of it when one of them fails."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from pydicom import dcmread
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from dicom_node import uids
from dicom_node.errors import Reason, Retryable
from dicom_node.spool import Spool
from tests.worker.build import Clock, settings_in
from worker.ledger import PurgeRule, open_ledger
from worker.phantom import phantom_dataset
from worker.pipeline import Pipeline, pause_after
from worker.scorer import Scorer

STUDY = "1.2.840.7"


@pytest.fixture(scope="module")
def engine_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


def scorer_in(folder, engine_cache, **sections):
    return Scorer(settings_in(folder, worker={"decoders": 1, "engine_cache": engine_cache}, **sections))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory, engine_cache):
    """A worker's scorer with one decoder."""
    with scorer_in(tmp_path_factory.mktemp("scorer"), engine_cache) as opened:
        yield opened


class Site:
    """A spool, a ledger, and a worker between them."""

    def __init__(self, settings, spool, ledger, scorer, clock) -> None:
        self.spool, self.ledger, self.clock = spool, ledger, clock
        self._settings, self._scorer = settings, scorer

    def score(self, *, spool=None) -> None:
        Pipeline(
            settings=self._settings,
            spool=spool or self.spool,
            ledger=self.ledger,
            scorer=self._scorer,
            worker="w1",
        ).score_study(STUDY)

    def study(self):
        return self.ledger.study(STUDY)

    def ends(self):
        return {image.sop_instance_uid: (image.disposition, image.reason) for image in self.study().images}

    def kept(self):
        return list((self.spool.root / "outbox").rglob("*.dcm"))


@pytest.fixture
def site(tmp_path, scorer):
    destination = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    settings, clock = settings_in(tmp_path, destinations=[destination]), Clock()
    spool = Spool(settings.spool.path)
    spool.prepare()
    with open_ledger(settings, migrate=True, clock=clock) as ledger:
        yield Site(settings, spool, ledger, scorer, clock)


@pytest.fixture
def films(spooled):
    """`films(n)` spools n films of the study, into the site's own spool."""

    def store(count):
        found = []
        for seed in range(count):
            ds = phantom_dataset(seed, rows=520, columns=430)
            ds.StudyInstanceUID, ds.PatientID = STUDY, "PHANTOM-1"
            found.append(spooled(ds))
        return found

    return store


def test_study_is_scored(site, films):
    """A film in the spool becomes a result with its objects in the outbox, due at the destination."""
    (film,) = films(1)
    site.score()
    assert site.ends() == {film.sop_instance_uid: ("scored", None)}
    (result,) = site.study().results
    assert {output.path for output in result.outputs} == {
        str(path.relative_to(site.spool.root)) for path in site.kept()
    }
    assert len(site.ledger.due_deliveries("pacs", 10)) == 2


@pytest.mark.parametrize("rotten", ["head", "all"])
def test_rotten_file_is_quarantined(site, films, rotten):
    """A file whose head has rotted costs itself: it is quarantined, and the film beside it scored."""
    bad, good = films(2)
    content = bad.path.read_bytes()
    bad.path.write_bytes(bytes(1024) + content[1024:] if rotten == "head" else b"")
    site.score()
    reason = Reason.UNREADABLE if rotten == "head" else Reason.FILE_ALTERED
    assert site.ends() == {
        bad.sop_instance_uid: ("quarantined", reason),
        good.sop_instance_uid: ("scored", None),
    }


def test_stray_file_is_nobodys_business(site, films):
    """What is no object of ours in a study's directory does not keep the study from being scored."""
    (film,) = films(1)
    film.path.with_name("notes.dcm").write_bytes(b"abc")
    site.score()
    assert site.ends() == {film.sop_instance_uid: ("scored", None)}


def prove(site):
    """The PACS has everything of the study that is due."""
    for one in site.ledger.due_deliveries("pacs", 10):
        site.ledger.deliveries_sent({one.delivery_id: 0x0000})
        site.ledger.delivery_verified(one.delivery_id)


def late(spooled, **changed):
    """One more image of the study, with these attributes."""
    ds = phantom_dataset(9, rows=520, columns=430)
    ds.StudyInstanceUID, ds.PatientID = STUDY, "PHANTOM-1"
    for keyword, value in changed.items():
        setattr(ds, keyword, value)
    return spooled(ds)


def test_late_film_that_cannot_be_read_is_told(site, films, spooled):
    """The report of before says that all was analysed: another goes out, once, that says what it lacks."""
    films(1)
    site.score()
    bad = late(spooled)
    content = bad.path.read_bytes()
    bad.path.write_bytes(bytes(1024) + content[1024:])
    site.score()
    assert site.ledger.retry(STUDY) == 1
    site.score()
    assert len(site.study().results) == 2
    due = [dcmread(one.path) for one in site.ledger.due_deliveries("pacs", 10)]
    (flag,) = {one.CompletionFlag for one in due if one.Modality == "SR"}
    assert flag == "PARTIAL"
    assert site.ends()[bad.sop_instance_uid] == ("quarantined", Reason.UNREADABLE)


OTHER_PATIENT = [
    {"PatientID": "PHANTOM-2"},
    {"PatientID": ""},
    {"PatientBirthDate": "19610203"},
    # An object that is never scored names a patient all the same.
    {"PatientID": "PHANTOM-2", "SOPClassUID": uids.CT_IMAGE, "Modality": "CT"},
]


@pytest.mark.parametrize("changed", OTHER_PATIENT, ids=["id", "no id", "birth date", "CT"])
def test_late_image_of_another_patient_after_the_result(site, films, spooled, changed):
    """The result that was written back stays in force, nothing new is made, and the study says why."""
    (film,) = films(1)
    site.score()
    prove(site)
    before = site.study().results
    other = late(spooled, **changed)
    site.score()
    conflict = ("quarantined", Reason.IDENTITY_CONFLICT)
    assert site.ends() == {film.sop_instance_uid: ("scored", None), other.sop_instance_uid: conflict}
    assert site.study().results == before
    assert site.study().conflict_at is not None
    assert site.ledger.due_deliveries("pacs", 10) == []
    (summary,) = site.ledger.studies()
    assert (summary.job, summary.reason) == conflict
    assert site.ledger.status().quarantined == {Reason.IDENTITY_CONFLICT: 1}


def test_conflict_stops_what_is_still_to_be_sent(site, films, spooled):
    """A result that waits for its PACS is not sent once the study names two patients, whatever is retried."""
    films(1)
    site.score()
    assert len(site.ledger.due_deliveries("pacs", 10)) == 2
    late(spooled, PatientID="PHANTOM-2")
    site.score()
    assert site.ledger.due_deliveries("pacs", 10) == []
    site.ledger.retry(STUDY)
    assert site.ledger.due_deliveries("pacs", 10) == []
    site.score()
    assert site.ledger.due_deliveries("pacs", 10) == []


def test_conflict_ends_when_the_images_agree(site, films, spooled):
    """Once a generation ends well nothing holds the study back."""
    films(1)
    site.score()
    other = late(spooled, PatientID="PHANTOM-2")
    site.score()
    other.path.write_bytes(other.path.read_bytes()[:-1])  # it cannot be read any more, and counts for nothing
    site.ledger.retry(STUDY)
    site.score()
    assert site.study().conflict_at is None
    assert len(site.ledger.due_deliveries("pacs", 10)) == 2


def test_late_image_of_a_purged_study_is_held(site, films, spooled):
    """A part of a study is not scored: the result in force stays, and the late image says what to do."""
    (film,) = films(1)
    site.score()
    prove(site)
    rule = PurgeRule(received_before=site.clock.now + timedelta(days=1))
    assert site.ledger.purge([STUDY], rule) == 1
    site.spool.remove({one.path: one.received_at for one in site.ledger.leaving(limit=10)})
    site.ledger.removed(site.ledger.leaving(limit=10))
    before = site.study().results
    other = late(spooled)
    site.score()
    held = ("quarantined", Reason.FILE_PURGED)
    assert site.ends() == {film.sop_instance_uid: ("scored", None), other.sop_instance_uid: held}
    assert site.study().results == before
    assert "Send the whole study again" in site.study().jobs[-1].sentence


def test_missing_file_that_comes_back(site, films):
    """What was quarantined because the machine failed is scored after `retry`."""
    (film,) = films(1)
    site.ledger.register(STUDY, site.spool.instances(STUDY))
    aside = film.path.rename(film.path.with_name("aside"))
    site.score()
    assert site.ends() == {film.sop_instance_uid: ("quarantined", Reason.FILE_MISSING)}
    aside.rename(film.path)
    assert site.ledger.retry(STUDY) == 1
    site.score()
    assert site.ends() == {film.sop_instance_uid: ("scored", None)}


def test_file_that_stays_unreadable_blocks_nobody(site, films):
    """A file that the disk does not give back is waited for, then left out and named; a retry takes it in."""
    bad, good = films(2)
    content = bad.path.read_bytes()
    bad.path.unlink()
    bad.path.mkdir()  # as good as a bad sector, also for root
    for _ in range(8):
        with pytest.raises(Retryable):
            site.score()
        site.clock.pass_by(60)
    site.score()
    assert site.ends() == {
        bad.sop_instance_uid: ("quarantined", Reason.FILE_UNREADABLE),
        good.sop_instance_uid: ("scored", None),
    }
    bad.path.rmdir()
    bad.path.write_bytes(content)
    assert site.ledger.retry(STUDY) == 1
    site.score()
    assert site.ends()[bad.sop_instance_uid] == ("scored", None)


def test_spool_may_be_moved(site, films):
    """A study that was registered where the spool lay before is scored where it lies now."""
    films(1)
    site.ledger.register(STUDY, site.spool.instances(STUDY))
    moved = site.spool.root.rename(site.spool.root.with_name("elsewhere"))
    settings = settings_in(moved.parent, spool={"path": moved, "minimum_free_bytes": 0})
    with open_ledger(settings, migrate=False) as ledger:
        claim = ledger.claim(STUDY, worker="w", lease=timedelta(seconds=60), maximum_attempts=3)
    assert [one.path.is_file() for one in claim.instances] == [True]


def test_full_disk_quarantines_nothing(site, films):
    """However long the outbox cannot be written the study waits, and is scored when it can."""
    (film,) = films(1)
    full = Spool(site.spool.root, minimum_free_bytes=2**62)
    for _ in range(5):
        with pytest.raises(Retryable):
            site.score(spool=full)
        assert list(site.ledger.announceable()) == []
        site.clock.pass_by(60)
    assert site.ends() == {film.sop_instance_uid: ("pending", None)}
    assert site.study().jobs[0].releases == 5
    assert site.kept() == []
    site.score()
    assert site.ends() == {film.sop_instance_uid: ("scored", None)}


def test_unrecorded_objects_are_not_kept(site, films):
    """When a result cannot be recorded, for a reason that no second try changes, its bytes go."""
    films(1)
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON outputs BEGIN SELECT RAISE(ABORT, 'no'); END"
    database = create_engine(f"sqlite:///{site.spool.root.parent / 'ledger.sqlite3'}")
    with database.begin() as connection:
        connection.execute(text(refuse))
    with pytest.raises(DBAPIError):
        site.score()
    assert site.kept() == []


def test_pauses_grow_to_a_minute():
    """A job that is given back again and again is looked at every minute."""
    pauses = [pause_after(releases).total_seconds() for releases in (0, 1, 2, 4, 5, 10_000)]
    assert pauses == [2, 4, 8, 32, 60, 60]
    assert pause_after(10**9) == timedelta(minutes=1)


def test_film_that_names_another_study_is_not_reported(scorer, films):
    """A file that reads as of another study than it was received for could reach a stranger's chart."""
    (film,) = films(1)
    finding = scorer.find("1.2.840.8", 1, [replace(film, study_instance_uid="1.2.840.8")])
    assert [one.reason for one in finding.quarantined] == [Reason.UNREADABLE]
    assert not finding.scores


@pytest.mark.parametrize("change", [{"threshold": 0.123}, {"temperature": 3.0}], ids=str)
def test_another_configuration_makes_other_objects(scorer, films, change):
    """The same film under another threshold or calibration is reported in objects and series of its own."""
    finding = scorer.find(STUDY, 1, films(1))
    first, second = (
        scorer.encode(each) for each in (finding, replace(finding, model=replace(finding.model, **change)))
    )
    for name in ("sop_instance_uid", "series_instance_uid"):
        assert {getattr(one, name) for one in first}.isdisjoint(getattr(one, name) for one in second)


def test_another_policy_makes_another_input_set(scorer, films, tmp_path, engine_cache):
    """A film that was analysed and the same film set aside are two inputs."""
    found = films(1)
    with scorer_in(tmp_path, engine_cache, eligibility={"minimum_pixels": 1000}) as strict:
        (one, other) = (each.find(STUDY, 1, found) for each in (scorer, strict))
    assert (len(one.scores), len(other.set_aside)) == (1, 1)
    assert one.input_set_hash != other.input_set_hash

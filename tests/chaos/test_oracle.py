"""The oracle finds nothing in a system at rest, and each kind of violation in one that was tampered with."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from deploy.pacs import StandInPacs
from dicom_node import uids
from dicom_node.spool import Spool
from tests.chaos.oracle import Judgement, Sent, data_set_sha256, held_in, judge
from tests.worker.build import settings_in
from tests.worker.conftest import ARRIVAL
from worker.deliver import Deliverer
from worker.ledger import open_ledger
from worker.office import Office
from worker.phantom import phantom_dataset
from worker.pipeline import Pipeline
from worker.scorer import Scorer

SMALL = {"rows": 300, "columns": 300}


@dataclass(frozen=True, kw_only=True)
class Site:
    """A system at rest: its files, and what its senders noted."""

    folder: Path
    sent: list[Sent]

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def one(self, pattern: str) -> Path:
        """Any one file of the site."""
        return next(iter(sorted(self.folder.glob(pattern))))

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.folder / "ledger.sqlite3")) as database, database:
            database.execute(statement)

    def judge(self) -> Judgement:
        with open_ledger(settings_in(self.folder), migrate=False) as ledger:
            return judge(self.sent, spool=self.spool, ledger=ledger, pacs=held_in(self.folder / "pacs"))


def send(spool: Spool, film) -> Sent:
    """Put a film into the spool, as the node would."""
    file = BytesIO()
    film.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    start = 144 + int.from_bytes(content[140:144], "little")
    spool.store(content[start:], transfer_syntax_uid=uids.EXPLICIT_VR_LITTLE_ENDIAN, arrival=ARRIVAL)
    return Sent(
        study_instance_uid=film.StudyInstanceUID,
        sop_instance_uid=film.SOPInstanceUID,
        sha256=data_set_sha256(content),
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Site:
    """Two studies, scored and proven; of the second the bytes are still in the outbox."""
    folder = tmp_path_factory.mktemp("at rest")
    spool = Spool(folder / "spool")
    spool.prepare()
    sent = []
    with StandInPacs(folder / "pacs") as pacs:
        where = {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port, "verify": "find"}
        settings = settings_in(
            folder,
            worker={"decoders": 1, "engine_cache": tmp_path_factory.mktemp("engine")},
            destinations=[{"name": "pacs", **where}],
            queue={"url": f"redis+socket://{folder / 'no-broker'}"},
        )
        with Scorer(settings) as scorer, open_ledger(settings, migrate=True) as ledger:
            pipeline = Pipeline(settings=settings, spool=spool, ledger=ledger, scorer=scorer, worker="w1")
            deliverer = Deliverer(settings.destinations[0], settings=settings, ledger=ledger)
            for seed in (1, 2):
                Office(settings, ledger).drop_outputs()
                sent += [send(spool, phantom_dataset(seed, view=view, **SMALL)) for view in ("PA", "LL")]
                pipeline.score_study(sent[-1].study_instance_uid)
                deliverer.step()
    return Site(folder=folder, sent=sent)


@pytest.fixture
def site(template, tmp_path) -> Site:
    """A copy to tamper with."""
    shutil.copytree(template.folder, tmp_path / "site")
    return Site(folder=tmp_path / "site", sent=list(template.sent))


def test_nothing_is_found_where_nothing_is_wrong(site):
    """A system at rest has no violation, and the ends of its images add up."""
    judgement = site.judge()
    assert judgement.violations == ()
    assert judgement.ends == {"NOT_FRONTAL": 2, "scored": 2}


def forget_image(site: Site) -> None:
    site.sql("DELETE FROM images WHERE id = 1")


def forget_sender(site: Site) -> None:
    site.sent.pop()


def lose_file(site: Site) -> None:
    site.one("spool/studies/*/*").unlink()


def rot_file(site: Site) -> None:
    path = site.one("spool/studies/*/*")
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def stray_file(site: Site) -> None:
    (site.one("spool/studies/*") / f"1.2.3_{'0' * 64}.dcm").touch()


def register_twice(site: Site) -> None:
    site.sql("CREATE TABLE other AS SELECT * FROM images")
    site.sql("DROP TABLE images")
    site.sql("ALTER TABLE other RENAME TO images")
    columns = "study_instance_uid, series_instance_uid, sop_instance_uid, sop_class_uid, transfer_syntax_uid"
    columns += ", sha256, path, size, calling_ae, called_ae, address, received_at, registered_at, disposition"
    site.sql(f"INSERT INTO images ({columns}) SELECT {columns} FROM images WHERE id = 1")


def two_results(site: Site) -> None:
    columns = "study_instance_uid, job_id, model_name, model_version, model_sha256, configuration, engine"
    columns += ", precision, recipe, threshold, operating_point, analysed_at, recorded_at, input_set_hash"
    site.sql(
        f"INSERT INTO results ({columns}, generation) SELECT {columns}, 2 FROM results WHERE generation = 1"
    )


def at_pacs_again(*keywords: str) -> Callable[[Site], None]:
    """One more SR at the PACS that differs in these UIDs."""

    def tamper(site: Site) -> None:
        reports = [dcmread(path) for path in sorted(site.folder.glob("pacs/*/*.dcm"))]
        report = next(one for one in reports if one.Modality == "SR")
        for keyword in keywords:
            setattr(report, keyword, f"{report[keyword].value[:-2]}1")
        report.file_meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
        report.save_as(site.folder / "pacs" / report.StudyInstanceUID / f"{report.SOPInstanceUID}.dcm")

    return tamper


def rot_at_pacs(site: Site) -> None:
    path = site.one("pacs/*/*.dcm")
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def lose_at_pacs(site: Site) -> None:
    site.one("pacs/*/*.dcm").unlink()


def leave_image(site: Site) -> None:
    site.sql("UPDATE images SET disposition = 'pending'")


def leave_reason(site: Site) -> None:
    site.sql("UPDATE images SET reason = NULL")


def leave_job(site: Site) -> None:
    site.sql("UPDATE jobs SET state = 'claimed'")


def leave_delivery(site: Site) -> None:
    site.sql("UPDATE deliveries SET state = 'stored'")


def forget_result(site: Site) -> None:
    site.sql("UPDATE results SET superseded_at = '2026-01-01 00:00:00.000000' WHERE id = 1")


def forget_deliveries(site: Site) -> None:
    site.sql("DELETE FROM deliveries WHERE output_id IN (SELECT id FROM outputs WHERE result_id = 1)")


def forget_heatmap(site: Site) -> None:
    site.sql("DELETE FROM outputs WHERE role = 'sc'")


def hold_back(site: Site) -> None:
    site.sql("UPDATE deliveries SET state = 'cancelled'")


def lose_output(site: Site) -> None:
    site.one("spool/outbox/*/*").unlink()


def rot_output(site: Site) -> None:
    site.one("spool/outbox/*/*").write_bytes(b"?")


def stray_output(site: Site) -> None:
    path = site.one("spool/outbox/*/*")
    shutil.copy(path, path.with_name(f"1.2.3_{'0' * 64}.dcm"))


def leave_part(site: Site) -> None:
    (site.spool / "incoming" / "0.part").touch()


def leave_report(site: Site) -> None:
    (site.spool / "reports" / "1.2.3.json").touch()


def forge_event(site: Site) -> None:
    site.sql("DROP TRIGGER events_refuse_update")
    site.sql("UPDATE events SET body = '{}' WHERE seq = 2")


@pytest.mark.parametrize(
    ("tamper", "kind", "words"),
    [
        (forget_image, "lost", "is not in the ledger"),
        (lose_file, "lost", "is not in the spool."),
        (rot_file, "lost", "is not in the spool as it was sent"),
        (register_twice, "duplicated", "is in the ledger 2 times"),
        (two_results, "duplicated", "has 2 results in force"),
        (at_pacs_again("SOPInstanceUID", "SeriesInstanceUID"), "duplicated", "has 2 SR series of one model"),
        (at_pacs_again("SOPInstanceUID"), "duplicated", "has 2 SRs of generation 1"),
        (at_pacs_again("SOPInstanceUID"), "untrue", "which the ledger never recorded"),
        (forget_result, "lost", "was scored, and no report of it is proven"),
        (forget_deliveries, "lost", "was scored, and no report of it is proven"),
        (forget_heatmap, "lost", "was scored, and no report of it is proven"),
        (hold_back, "untrue", "is still cancelled"),
        (forget_sender, "untrue", "no sender was answered"),
        (lose_file, "untrue", "An image row has no file"),
        (stray_file, "untrue", "A spooled file has no image row"),
        (rot_at_pacs, "untrue", "holds other bytes"),
        (lose_at_pacs, "untrue", "is proven in the ledger and not at the PACS"),
        (leave_image, "untrue", "is still pending"),
        (leave_reason, "untrue", "ended without a reason"),
        (leave_job, "untrue", "is still claimed"),
        (leave_delivery, "untrue", "is still stored"),
        (lose_output, "untrue", "An output row has no file"),
        (rot_output, "untrue", "not as it was recorded"),
        (stray_output, "untrue", "A file of the outbox has no output row"),
        (leave_part, "untrue", "incoming/0.part was left"),
        (leave_report, "untrue", "reports/1.2.3.json was not taken"),
        (forge_event, "untrue", "The audit chain is broken"),
    ],
)
def test_each_violation_is_found(site, tamper, kind, words):
    """Whatever was tampered with is named, in its kind."""
    tamper(site)
    assert [sentence for sentence in getattr(site.judge(), kind) if words in sentence]

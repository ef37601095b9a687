"""A support bundle holds what helps, and no patient."""

from __future__ import annotations

import json
import tarfile

from deploy.support import Scrubber
from tests.deploy.site import ACCESSION, FAMILY, PATIENT_ID, STUDIES, scored_folder, site  # noqa: F401

AT = "2026-11-25T10:00:00.000000Z"
CONSOLE = (
    "   node │ 2026-11-25T10:00:00.000000Z [warning  ] object_refused                 address=10.0.0.9 "
    "calling_ae=KOWALCZYK station=receive status=0xA700 why='Kowalczyk^Jan does not fit'"
)


def test_no_patient_leaves_in_a_support_bundle(site, invoke, tmp_path):  # noqa: F811
    """Names and ids that stand in films, logs, AE titles and settings are in no file of the archive."""
    log = tmp_path / "node.log"
    line = {"event": "object_filed", "level": "info", "timestamp": AT, "study": STUDIES[0], "filed": "new"}
    lines = [
        json.dumps(line),
        json.dumps(
            line
            | {
                "patient": FAMILY,
                "calling_ae": FAMILY,
                "why": f"{FAMILY}^Jan",
                "size": PATIENT_ID,
                "error": ACCESSION,
                "study": PATIENT_ID,
            }
        ),
        CONSOLE,
        f"Traceback: ValueError: PatientName {FAMILY}^Jan",
        f"WARNING pydicom Invalid value for VR PN: '{FAMILY}'",
    ]
    log.write_text("\n".join(lines))
    with (tmp_path / "covariance.toml").open("a") as file:
        file.write('[audit]\nsyslog_key = ""\n')
    text = (tmp_path / "covariance.toml").read_text()
    text = text.replace("[database]", '[database]\npatient_hash_key = "hidden-key"')
    (tmp_path / "covariance.toml").write_text(text)
    done = invoke("--config", "covariance.toml", "support-bundle", "out.tar.gz", "--log", "node.log")
    assert done.exit_code == 0, done.output
    members = {}
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        for member in archive:
            members[member.name.partition("/")[2]] = archive.extractfile(member).read().decode()
    assert set(members) == {
        "settings.toml",
        "versions.json",
        "doctor.json",
        "counts.json",
        "logs/0-node.log",
    }
    whole = "\n".join(members.values()).lower()
    for secret in (FAMILY, PATIENT_ID, ACCESSION, "hidden-key", *STUDIES):
        assert secret.lower() not in whole, secret
    assert json.loads(members["counts.json"])["ledger"]["images"]["scored"] == 2
    assert json.loads(members["counts.json"])["events"]["recorded"] == 2
    assert "2 lines that are not ours" in members["logs/0-node.log"]
    assert (tmp_path / "out.tar.gz").stat().st_mode & 0o077 == 0


def test_a_study_has_one_pseudonym_within_a_bundle():
    """Lines of one study can still be read together; of two bundles they cannot."""
    line = json.dumps({"event": "study_scored", "level": "info", "timestamp": AT, "study": STUDIES[0]})
    scrub = Scrubber()
    assert scrub.line(line) == scrub.line(line)
    assert STUDIES[0] not in scrub.line(line)
    assert scrub.line(line) != Scrubber().line(line)
    told = json.loads(scrub.line(CONSOLE))
    assert (told["event"], told["status"]) == ("object_refused", "0xA700")
    assert set(told) == {"timestamp", "level", "event", "station", "status"}

"""Orthanc as the modality that sends and as the PACS that gets the results."""

from __future__ import annotations

import subprocess
from io import BytesIO

import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicom_node import uids
from dicom_node.errors import Reason
from worker.ledger import Disposition
from worker.phantom import phantom_dataset

SMALL = {"rows": 640, "columns": 512}


@pytest.fixture(scope="module")
def system(make_system, orthanc, node_port):
    """A running CoVariance whose only destination is Orthanc, with storage commitment."""
    destination = {"name": "orthanc", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}
    system = make_system([destination], port=node_port)
    system.start()
    return system


def part10(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def send_from_orthanc(orthanc, *datasets: Dataset) -> None:
    """Put the images into Orthanc, and have it send them to us."""
    held = [orthanc.rest("/instances", part10(dataset))["ID"] for dataset in datasets]
    orthanc.rest("/modalities/covariance/store", {"Resources": held, "Synchronous": True})


def of_modality(orthanc, study: str, modality: str) -> list[str]:
    found = [s for s in orthanc.series(study) if s["MainDicomTags"]["Modality"] == modality]
    return [instance for series in found for instance in series["Instances"]]


def test_study_comes_back_with_report_and_heatmap_in_the_same_study(system, orthanc):
    """A study that Orthanc sends has, seconds later, our SR and our heatmap beside its film."""
    film = phantom_dataset(1, salt="round trip", **SMALL)
    send_from_orthanc(orthanc, film)
    record = system.wait_for(film.StudyInstanceUID)

    assert [image.disposition for image in record.images] == [Disposition.SCORED]
    (study,) = orthanc.find(level="Study", StudyInstanceUID=film.StudyInstanceUID)
    modalities = sorted(s["MainDicomTags"]["Modality"] for s in orthanc.series(film.StudyInstanceUID))
    assert modalities == ["CR", "OT", "SR"]
    assert len(orthanc.rest(f"/studies/{study}")["Series"]) == 3
    (patient,) = orthanc.find(level="Patient", PatientID=film.PatientID)
    assert orthanc.rest(f"/patients/{patient}")["Studies"] == [study]


def test_what_the_pacs_holds_passes_the_validators(system, orthanc, program, tmp_path):
    """dciodvfy finds no error in what Orthanc holds of ours, and dsrdump reads the report."""
    film = phantom_dataset(3, salt="validators", **SMALL)
    send_from_orthanc(orthanc, film)
    system.wait_for(film.StudyInstanceUID)
    for modality in ("SR", "OT"):
        (held,) = of_modality(orthanc, film.StudyInstanceUID, modality)
        file = tmp_path / f"{modality}.dcm"
        file.write_bytes(orthanc.file(held))
        found = subprocess.run(
            [program("dciodvfy"), "-new", file], capture_output=True, text=True, check=False
        )
        assert not [line for line in found.stderr.splitlines() if line.startswith("Error")]
    dump = subprocess.run(
        [program("dsrdump"), tmp_path / "SR.dcm"], capture_output=True, text=True, check=False
    )
    assert dump.returncode == 0
    assert "Probability" in dump.stdout


def said_by(*command) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout


AWKWARD = {
    "sex U": {"PatientSex": b"U "},
    "empty birth date": {"PatientBirthDate": b""},
    "malformed dates": {"PatientBirthDate": b"1960.1.1", "StudyDate": b"20201399"},
    "Cyrillic": {"SpecificCharacterSet": b"ISO_IR 144", "PatientName": "Иванов^Иван".encode("iso8859_5")},
    "Japanese": {
        "SpecificCharacterSet": b"\\ISO 2022 IR 87",
        "PatientName": b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B ",
    },
    "UTF-8": {"SpecificCharacterSet": b"ISO_IR 192", "PatientName": "王^小東".encode()},
}
KEEPS = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def identifiers(part10: bytes) -> dict[str, bytes]:
    """Value bytes as they stand in an explicit little-endian file; empty where there is none."""
    dataset = dcmread(BytesIO(part10), stop_before_pixels=True)
    found = {keyword: dataset.get_item(keyword) for keyword in KEEPS}
    return {
        keyword: (element.value or b"").rstrip(b" \0") if element is not None else b""
        for keyword, element in found.items()
    }


def assert_results_name(sent: dict[str, bytes], orthanc, study: str) -> None:
    """The one SR and the one heatmap of the study carry exactly these identifiers."""
    for modality in ("SR", "OT"):
        (result,) = of_modality(orthanc, study, modality)
        assert identifiers(orthanc.file(result)) == sent


def with_raw(film: Dataset, values: dict[str, bytes | None]) -> bytes:
    """The film as a file with these value bytes, whatever the standard says of them."""
    dataset = dcmread(BytesIO(part10(film)))
    for keyword, value in values.items():
        tag = Tag(tag_for_keyword(keyword))
        if value is None:
            dataset.pop(tag, None)
            continue
        padded = value + b" " * (len(value) % 2)
        dataset._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(padded), padded, 0, False, True)
    if charset := values.get("SpecificCharacterSet"):
        dataset.SpecificCharacterSet = charset.decode().split("\\")
    # Told that nothing has changed, pydicom writes the bytes as they stand instead of encoding them anew.
    dataset.set_original_encoding(False, True, dataset._character_set)
    return part10(dataset)


@pytest.mark.parametrize("header", AWKWARD)
def test_identifiers_come_back_byte_for_byte(system, orthanc, header, tmp_path):
    """Whatever a modality writes into a name, a date or a sex, the results carry the same bytes."""
    film = phantom_dataset(4, salt=f"awkward {header}", **SMALL)
    file = with_raw(film, AWKWARD[header])
    held = orthanc.rest("/instances", file)["ID"]
    orthanc.rest("/modalities/covariance/store", {"Resources": [held], "Synchronous": True})
    system.wait_for(film.StudyInstanceUID)

    sent = identifiers(file)
    meant = {k: v.rstrip(b" ") for k, v in AWKWARD[header].items() if k in KEEPS}
    assert {keyword: sent[keyword] for keyword in meant} == meant
    assert_results_name(sent, orthanc, film.StudyInstanceUID)


@pytest.mark.parametrize("missing", [("PatientOrientation",), ("StudyID",), ("PatientName",)])
def test_missing_attributes_do_not_stop_a_result(system, orthanc, missing):
    """Without a name, a study id or an orientation a film is scored; nothing is made up in its results."""
    film = phantom_dataset(5, salt=f"missing {missing}", **SMALL)
    file = with_raw(film, dict.fromkeys(missing))
    held = orthanc.rest("/instances", file)["ID"]
    orthanc.rest("/modalities/covariance/store", {"Resources": [held], "Synchronous": True})
    system.wait_for(film.StudyInstanceUID)

    sent = identifiers(file)
    assert not any(sent.get(keyword) for keyword in missing)
    assert_results_name(sent, orthanc, film.StudyInstanceUID)


def test_uids_of_64_characters_are_kept(system, orthanc):
    """The longest UIDs that the standard allows come back unchanged, as identifiers and as references."""
    film = phantom_dataset(6, salt="long", **SMALL)
    film.StudyInstanceUID = "1.2.826.0.1.3680043.10.1.".ljust(63, "7") + "1"
    film.SeriesInstanceUID = "1.2.826.0.1.3680043.10.1.".ljust(63, "7") + "2"
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = film.SeriesInstanceUID[:-1] + "3"
    send_from_orthanc(orthanc, film)
    system.wait_for(film.StudyInstanceUID)

    assert_results_name(identifiers(part10(film)), orthanc, film.StudyInstanceUID)
    for modality, cited in (
        ("SR", [film.SeriesInstanceUID, film.SOPInstanceUID]),
        ("OT", [film.SOPInstanceUID]),
    ):
        (result,) = of_modality(orthanc, film.StudyInstanceUID, modality)
        assert [uid for uid in cited if uid.encode() not in orthanc.file(result)] == []


def test_sent_twice_gives_one_result(system, orthanc):
    """The same image again is the same image: one job, one report, one heatmap."""
    film = phantom_dataset(7, salt="twice", **SMALL)
    send_from_orthanc(orthanc, film)
    system.wait_for(film.StudyInstanceUID)
    send_from_orthanc(orthanc, film)
    marker = phantom_dataset(7, salt="sent after twice", **SMALL)
    send_from_orthanc(orthanc, marker)
    system.wait_for(marker.StudyInstanceUID)

    record = system.ledger.study(film.StudyInstanceUID)
    assert (len(record.images), len(record.jobs), len(record.results)) == (1, 1, 1)
    assert len(of_modality(orthanc, film.StudyInstanceUID, "SR")) == 1


def test_late_image_supersedes_the_result(system, orthanc):
    """An image that comes after the result makes a second generation that takes its place."""
    first = phantom_dataset(8, salt="late", **SMALL)
    send_from_orthanc(orthanc, first)
    system.wait_for(first.StudyInstanceUID)
    late = phantom_dataset(9, salt="late", **SMALL)
    late.StudyInstanceUID, late.PatientID = first.StudyInstanceUID, first.PatientID
    send_from_orthanc(orthanc, late)
    record = system.wait_for(first.StudyInstanceUID, generation=2)

    assert [result.superseded_at is None for result in record.results] == [False, True]
    series = [s for s in orthanc.series(first.StudyInstanceUID) if s["MainDicomTags"]["Modality"] == "SR"]
    assert [len(one["Instances"]) for one in series] == [2]


def test_our_own_results_sent_back_are_ignored(system, orthanc):
    """A router that sends our SR and heatmap back to us starts nothing."""
    film = phantom_dataset(10, salt="echo", **SMALL)
    send_from_orthanc(orthanc, film)
    system.wait_for(film.StudyInstanceUID)
    (study,) = orthanc.find(level="Study", StudyInstanceUID=film.StudyInstanceUID)
    orthanc.rest("/modalities/covariance/store", {"Resources": [study], "Synchronous": True})
    for modality in ("SR", "OT"):
        (held,) = of_modality(orthanc, film.StudyInstanceUID, modality)
        ours = orthanc.rest(f"/instances/{held}/simplified-tags")["SOPInstanceUID"]
        image = system.wait_for_image(film.StudyInstanceUID, ours)
        assert (image.disposition, image.reason) == (Disposition.BY_POLICY, Reason.OWN_OUTPUT)
    assert len(system.ledger.study(film.StudyInstanceUID).results) == 1


def lateral(film: Dataset) -> None:
    film.ViewPosition = "LL"


def abdomen(film: Dataset) -> None:
    film.BodyPartExamined = "ABDOMEN"
    film.StudyDescription = "Abdomen"


def ct(film: Dataset) -> None:
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = uids.CT_IMAGE
    film.Modality = "CT"


def child(film: Dataset) -> None:
    film.PatientBirthDate, film.PatientAge = "20150101", "005Y"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lateral, Reason.NOT_FRONTAL),
        (abdomen, Reason.BODY_PART),
        (ct, Reason.SOP_CLASS),
        (child, Reason.AGE),
    ],
)
def test_what_is_not_analysed_says_why(system, orthanc, change, reason):
    """A lateral, an abdomen, a CT and a child end by policy, and the PACS gets an SR with the reason."""
    film = phantom_dataset(11, salt=f"policy {reason}", **SMALL)
    change(film)
    send_from_orthanc(orthanc, film)
    record = system.wait_for(film.StudyInstanceUID)

    assert [(i.disposition, i.reason) for i in record.images] == [(Disposition.BY_POLICY, reason)]
    assert record.results[0].decision is None
    (held,) = of_modality(orthanc, film.StudyInstanceUID, "SR")
    assert reason.encode() in orthanc.file(held)
    assert of_modality(orthanc, film.StudyInstanceUID, "OT") == []

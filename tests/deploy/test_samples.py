"""What the demo finds to send."""

from __future__ import annotations

import pytest
from pydicom import dcmwrite

from deploy.samples import file_samples
from dicom_node.errors import CovarianceError
from worker.phantom import phantom_dataset


@pytest.fixture
def folder(tmp_path):
    """One film that can be sent."""
    (tmp_path / "mine").mkdir()
    film = phantom_dataset(1, rows=256, columns=210)
    dcmwrite(tmp_path / "mine" / "film.dcm", film, enforce_file_format=True)
    return tmp_path / "mine"


def test_what_is_left_out_is_counted(folder, tmp_path):
    """A text, a torn picture and a DICOM file without a study are left out, and counted."""
    (folder / "note.txt").write_text("no film")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    homeless = phantom_dataset(2, rows=256, columns=210)
    del homeless.StudyInstanceUID
    dcmwrite(folder / "homeless.dcm", homeless, enforce_file_format=True)
    found = file_samples(folder, tmp_path / "wrapped")
    assert [len(study.items) for study in found.studies] == [1]
    assert found.left_out == 3


def test_nothing_to_send_is_an_error(tmp_path):
    """A folder without any film is said to be one."""
    (tmp_path / "note.txt").write_text("no film")
    with pytest.raises(CovarianceError, match="Nothing at"):
        file_samples(tmp_path, tmp_path / "wrapped")

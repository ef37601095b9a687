import subprocess
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from worker.phantom import PATIENT_ID_PREFIX, phantom_dataset, radiograph

SMALL = {"rows": 500, "columns": 410}


def test_a_seed_gives_the_same_film_again():
    """The same seed gives the same pixels, another seed gives others."""
    first = radiograph(1, **SMALL)
    assert np.array_equal(first, radiograph(1, **SMALL))
    assert not np.array_equal(first, radiograph(2, **SMALL))


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_grey_values_use_the_bits(bits):
    """Values span most of what the bits can hold and no more."""
    film = radiograph(1, bits=bits, **SMALL)
    assert film.max() <= (1 << bits) - 1
    assert np.ptp(film) > 0.9 * (1 << bits)


def test_dense_is_bright():
    """Spine and abdomen are brighter than lungs, and air beside the body is darkest."""
    film = radiograph(1, **SMALL).astype(float)
    lung = np.median(film[150:220, 90:140])
    spine, abdomen, air = film[300:330, 200:210].mean(), film[430:470, 80:120].mean(), film[:, :3].min()
    assert air < lung < abdomen < spine


def test_opacities_brighten_the_lungs_only():
    """The opacity argument raises lung fields and leaves the abdomen as it is."""
    clear, filled = (radiograph(3, opacity=o, **SMALL).astype(float) for o in (0.0, 1.0))
    difference = filled - clear
    lungs, abdomen = difference[200:330, 60:140], difference[440:, 60:140]
    assert lungs.mean() > 200
    assert abs(abdomen.mean()) < 60


@pytest.mark.parametrize("modality", ["CR", "DX"])
@pytest.mark.parametrize("view", ["PA", "LL"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_data_sets_are_valid(tmp_path, program, modality, view, photometric):
    """dciodvfy finds no error in a phantom's file."""
    path = tmp_path / "phantom.dcm"
    ds = phantom_dataset(1, modality=modality, view=view, photometric=photometric, **SMALL)
    ds.save_as(path, enforce_file_format=True)
    checked = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True, check=False)
    assert "Error" not in checked.stdout + checked.stderr


def test_views_of_a_seed_are_one_study():
    """Two views share patient and study and differ in series and instance; a salt changes them all."""
    pa, lateral = (phantom_dataset(1, view=view, **SMALL) for view in ("PA", "LL"))
    other = phantom_dataset(1, salt="again", **SMALL)
    assert (pa.StudyInstanceUID, pa.PatientID) == (lateral.StudyInstanceUID, lateral.PatientID)
    assert pa.SOPInstanceUID != lateral.SOPInstanceUID
    assert pa.SeriesInstanceUID != lateral.SeriesInstanceUID
    assert not {pa.StudyInstanceUID, pa.PatientID, pa.SOPInstanceUID} & {
        other.StudyInstanceUID,
        other.PatientID,
        other.SOPInstanceUID,
    }


def test_a_phantom_is_labelled():
    """Name, reserved PatientID and lead letters say that it is a phantom."""
    ds = phantom_dataset(1, **SMALL)
    assert ds.PatientName == "PHANTOM^CHEST"
    assert ds.PatientID.startswith(PATIENT_ID_PREFIX)
    letters = radiograph(1, **SMALL)[25:40, 20:100]
    assert (letters > 2500).mean() > 0.05
    assert letters.max() > 3800


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize("bits", [8, 12])
def test_uncompressed_syntaxes_hold_the_same_pixels(syntax, bits):
    """A phantom written in any uncompressed syntax reads back as the same grey values."""
    ds = phantom_dataset(1, bits=bits, transfer_syntax_uid=syntax, **SMALL)
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    read = dcmread(BytesIO(file.getvalue())).pixel_array
    assert np.array_equal(read, radiograph(1, bits=bits, **SMALL))

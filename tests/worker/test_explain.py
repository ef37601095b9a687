import inspect
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ImageFont

from dicom_node.errors import ConfigurationError
from worker import explain
from worker.findings import ModelIdentity

MODEL = ModelIdentity(
    name="densenet121-covid",
    version="1.2.3",
    sha256="0123456789abcdef" * 4,
    recipe="equalise-224/1",
    engine="openvino 2026.4.1",
    precision="bf16",
    threshold=0.4,
    operating_point="youden@dev",
    temperature=1.5,
)
FLAT_HW = np.full((600, 500), 120, np.uint8)


def page_of(cam_hw, *, probability=0.9, film_HW=FLAT_HW, **changes):
    logit = MODEL.temperature * float(np.log(probability / (1 - probability)))
    facts = {
        "film_HW": film_HW,
        "cam_hw": np.asarray(cam_hw, np.float32),
        "logit": logit,
        "probability": probability,
        "model": MODEL,
        "film_number": 1,
        "films": 1,
        "study": "positive",
        "generation": 1,
        "analysed_at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return explain.overlay_page(**facts | changes)


def coloured(page) -> np.ndarray:
    """Where the right panel has colour."""
    left = explain._OVERLAY_LEFT
    panel = page[explain._PANEL_TOP :, left : left + explain._PANEL_WIDTH][: explain._PANEL_HEIGHT]
    return np.ptp(panel.astype(int), axis=2) > 8


def peak(row: int, column: int) -> np.ndarray:
    cam_hw = np.full((10, 10), -20.0)
    cam_hw[row, column] = 30.0
    return cam_hw


def test_page_is_rgb_of_one_size():
    """Every page has the same size, whatever the film's."""
    sizes = {
        page_of(peak(4, 4), film_HW=np.zeros(shape, np.uint8)).shape
        for shape in ((600, 500), (500, 600), (1024, 1024), (300, 1024), (1024, 40))
    }
    assert sizes == {(explain.PAGE_HEIGHT, explain.PAGE_WIDTH, 3)}


def test_text_is_legible_where_the_page_is_shrunk(monkeypatch):
    """On a page that is shown 1024 pixels wide no text is smaller than 14 pixels."""
    sizes, load = [], ImageFont.load_default
    monkeypatch.setattr(ImageFont, "load_default", lambda size: sizes.append(size) or load(size))
    explain._font.cache_clear()
    explain._frame.cache_clear()
    page_of(peak(4, 4))
    assert min(sizes) * 1024 / explain.PAGE_WIDTH >= 14


def test_mean_of_the_evidence_is_the_films():
    """The map in log-odds averages to the film's own distance from the threshold."""
    cam_hw = np.random.default_rng(3).normal(0, 5, (10, 10)).astype(np.float32)
    evidence_hw = explain.local_evidence(cam_hw, 3.0, MODEL)
    assert float(evidence_hw.mean()) == pytest.approx(3.0 / 1.5 - np.log(0.4 / 0.6), abs=1e-4)


@pytest.mark.parametrize(("row", "column"), [(1, 1), (1, 8), (8, 1), (8, 8)])
def test_colour_is_where_the_evidence_is(row, column):
    """The overlay is neither mirrored nor turned."""
    rows, columns = np.nonzero(coloured(page_of(peak(row, column), probability=0.1)))
    side = min(explain._PANEL_HEIGHT / 600, explain._PANEL_WIDTH / 500)
    top, left = (explain._PANEL_HEIGHT - 600 * side) / 2, (explain._PANEL_WIDTH - 500 * side) / 2
    assert rows.mean() == pytest.approx(top + (row + 0.5) * 60 * side, abs=12)
    assert columns.mean() == pytest.approx(left + (column + 0.5) * 50 * side, abs=12)


def test_nothing_is_coloured_below_the_threshold():
    """A film without evidence anywhere stays grey: the scale is not stretched to it."""
    assert not coloured(page_of(np.zeros((10, 10)), probability=0.05)).any()


def test_colours_compare_between_films():
    """The same evidence has the same colour on every film."""
    pages = [page_of(np.zeros((10, 10))), page_of(np.full((10, 10), 1e6))]
    assert np.array_equal(*pages)


def test_film_stands_unaltered_on_the_left():
    """The left panel is the film in grey, without colour or change of brightness."""
    page = page_of(peak(4, 4))
    middle = page[explain._PANEL_TOP + 300, explain._FILM_LEFT + 300]
    assert middle.tolist() == [120, 120, 120]


def test_anatomy_stays_visible_under_full_colour():
    """Black and white on the film differ clearly under the strongest colour."""
    film_HW = np.zeros((600, 500), np.uint8)
    film_HW[:, 250:] = 255
    page = page_of(np.zeros((10, 10)), probability=1 - 1e-7, film_HW=film_HW)
    luminance_HW = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)
    row = luminance_HW[explain._PANEL_TOP + 300, explain._OVERLAY_LEFT :]
    assert int(row[explain._PANEL_WIDTH // 2 + 60]) - int(row[explain._PANEL_WIDTH // 2 - 60]) > 60


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, -1e30, 1e-30])
def test_wild_maps_give_a_page(value):
    """A map with no or enormous numbers still gives a page."""
    cam_hw = np.zeros((10, 10))
    cam_hw[3, 3] = value
    assert page_of(cam_hw).dtype == np.uint8


@pytest.mark.parametrize("probability", [0.9, 0.1])
def test_decision_changes_the_page(probability):
    """Positive and negative films are told apart by more than the number."""
    heading = page_of(np.zeros((10, 10)), probability=probability)[16:60, 24:400].reshape(-1, 3)
    red, _, blue = heading[heading.max(axis=1).argmax()].astype(int)
    assert (red > blue) == (probability > MODEL.threshold)


def test_no_identifier_can_come_in():
    """The drawing takes pixels, numbers, the model and a time: nothing that names anyone."""
    assert set(inspect.signature(explain.overlay_page).parameters) == {
        "film_HW",
        "cam_hw",
        "logit",
        "probability",
        "model",
        "film_number",
        "films",
        "study",
        "generation",
        "analysed_at",
    }


def test_png_holds_the_page(tmp_path: Path):
    """The PNG on disk is the page, in its colours."""
    page = page_of(peak(4, 4))
    explain.write_png(page, tmp_path / "page.png")
    assert np.array_equal(cv2.imread(str(tmp_path / "page.png"))[:, :, ::-1], page)


def test_png_in_a_missing_folder_is_an_error_in_one_sentence(tmp_path: Path):
    """A folder that is not there is told to the operator."""
    with pytest.raises(ConfigurationError, match="cannot be written"):
        explain.write_png(page_of(peak(4, 4)), tmp_path / "nowhere" / "page.png")

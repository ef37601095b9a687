"""The page that people look at: the film beside itself under the class activation map.

The map's mean is what the film's logit rests on, exactly. So each point is shown as the log-odds that the
whole film would have above the decision threshold if all of it looked like that point: the film is
positive when the mean over the page is above 0. This unit is the same for every film and model, so colours
compare between films; a scale stretched to each film would paint the quietest film red.
"""

from __future__ import annotations

import math
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.errors import ConfigurationError
from worker.findings import Decision, ModelIdentity
from worker.report.codes import RESEARCH_ONLY

PAGE_HEIGHT, PAGE_WIDTH = 1024, 1440
FULL_SCALE = 8.0
"""Log-odds above the threshold at which the colour is full: odds of 3000 to 1."""
FOOTNOTE = (
    "Colour: the log-odds above the threshold if all of the film looked like that point; "
    "the arrow is the film, their mean.\n"
    "The map shows what drove the score, not where disease is: "
    "it is coarse, and may rest on devices, lettering or borders."
)

_MARGIN = 24
_PANEL_TOP, _PANEL_HEIGHT, _PANEL_WIDTH = 196, 736, 638
_FILM_LEFT, _OVERLAY_LEFT = _MARGIN, _MARGIN + _PANEL_WIDTH + 12
_BAR_LEFT, _BAR_WIDTH = _OVERLAY_LEFT + _PANEL_WIDTH + 16, 26
_GAUGE_LEFT, _GAUGE_TOP, _GAUGE_WIDTH = _MARGIN, 104, 520
_BACKGROUND, _PANEL, _TEXT, _QUIET = (14, 16, 20), (0, 0, 0), (236, 238, 242), (160, 166, 176)
_COLOUR: dict[Decision, tuple[int, int, int]] = {"positive": (255, 190, 92), "negative": (150, 200, 255)}
_WARNING = (255, 214, 64)
_SMALL = 21
"""The smallest text: 15 pixels high where the page is shown 1024 pixels wide."""
_STRONGEST = 0.62  # Share of the colour at full scale: the anatomy stays visible underneath.

Page = NDArray[np.uint8]


def overlay_page(
    *,
    film_HW: NDArray[np.uint8],
    cam_hw: NDArray[np.float32],
    logit: float,
    probability: float,
    model: ModelIdentity,
    film_number: int,
    films: int,
    study: Decision,
    generation: int,
    analysed_at: datetime,
) -> Page:
    """Draw the page. Nothing that names a patient or a study comes in, so nothing can be burnt in.

    Args:
        film_HW: the film as it is shown, bright where the body is dense.
        cam_hw: class activation map over the whole film; `logit = mean(cam) + constant`.
        logit: of this film, before calibration.
        probability: of this film, calibrated.
        model: what made the score.
        film_number: from 1, the decisive film first.
        films: how many were analysed.
        study: the decision on the study.
        generation: which result of this study it is.
        analysed_at: with its time zone.

    Returns:
        `(1024, 1440, 3)` RGB.
    """
    decision: Decision = "positive" if probability >= model.threshold else "negative"
    canvas = _frame(model, decision).copy()
    film_HW = _fitted(film_HW)
    height, width = film_HW.shape
    evidence_HW = cv2.resize(
        local_evidence(cam_hw, logit, model), (width, height), interpolation=cv2.INTER_CUBIC
    )
    grey_HW3 = cv2.cvtColor(film_HW, cv2.COLOR_GRAY2RGB)
    top = _PANEL_TOP + (_PANEL_HEIGHT - height) // 2
    for left, panel_HW3 in ((_FILM_LEFT, grey_HW3), (_OVERLAY_LEFT, _coloured(grey_HW3, evidence_HW))):
        start = left + (_PANEL_WIDTH - width) // 2
        canvas[top : top + height, start : start + width] = panel_HW3
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    _draw_result(draw, decision, probability, model)
    which = f"Film {film_number} of {films}; study {study.upper()}" if films > 1 else "One film in this study"
    draw.text(
        (_MARGIN, 136),
        f"{which}. Analysed {analysed_at:%Y-%m-%d %H:%M %z}, result number {generation}.",
        _TEXT,
        _font(_SMALL),
    )
    _draw_pointer(draw, _log_odds(probability) - _log_odds(model.threshold), decision)
    return np.asarray(image)


def local_evidence(cam_hw: NDArray[np.float32], logit: float, model: ModelIdentity) -> NDArray[np.float32]:
    """The map in calibrated log-odds above the decision threshold; its mean is the film's own."""
    finite_hw = np.nan_to_num(cam_hw, nan=float(np.nanmean(cam_hw)) if np.isfinite(cam_hw).any() else 0.0)
    local_hw = (finite_hw - finite_hw.mean() + logit) / model.temperature - _log_odds(model.threshold)
    return np.asarray(local_hw, np.float32)


def write_png(page: Page, path: Path) -> None:
    """Write a page as a PNG file.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    try:
        Image.fromarray(page).save(path, format="PNG", compress_level=3)
    except OSError as error:
        raise ConfigurationError(f"The overlay {path} cannot be written: {error.strerror}.") from None


def _log_odds(probability: float) -> float:
    inside = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(inside / (1 - inside))


def _fitted(film_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = film_HW.shape
    scale = min(_PANEL_HEIGHT / height, _PANEL_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted: NDArray[np.uint8] = cv2.resize(
        film_HW, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    return fitted


def _coloured(grey_HW3: NDArray[np.uint8], evidence_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay the perceptually uniform map `plasma` over the film, more opaque where there is more evidence."""
    share_HW = np.clip(evidence_HW / FULL_SCALE, 0, 1)
    colour_HW3 = cv2.applyColorMap((share_HW * 255).astype(np.uint8), _colours())
    opacity_HW = np.sqrt(share_HW) * np.float32(_STRONGEST)
    mixed: NDArray[np.uint8] = cv2.blendLinear(colour_HW3, grey_HW3, opacity_HW, 1 - opacity_HW)
    return mixed


@cache
def _colours() -> NDArray[np.uint8]:
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_PLASMA)
    return np.ascontiguousarray(ramp[:, :, ::-1])


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ConfigurationError("Pillow has no FreeType support: install the wheel from PyPI.")
    return font


@lru_cache(maxsize=8)
def _frame(model: ModelIdentity, decision: Decision) -> Page:
    """All that is the same on every page of a model with this decision."""
    image = Image.new("RGB", (PAGE_WIDTH, PAGE_HEIGHT), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    for left, caption in ((_FILM_LEFT, "Film"), (_OVERLAY_LEFT, "Film with class activation map")):
        draw.text((left, _PANEL_TOP - 28), caption, _QUIET, _font(_SMALL))
        draw.rectangle(
            (left, _PANEL_TOP, left + _PANEL_WIDTH - 1, _PANEL_TOP + _PANEL_HEIGHT - 1), fill=_PANEL
        )
    _draw_headings(draw, model, decision)
    draw.multiline_text((_MARGIN, 944), FOOTNOTE, _QUIET, _font(_SMALL), spacing=6)
    page = np.array(image)
    _paint_bar(page)
    image = Image.fromarray(page)
    _draw_ticks(ImageDraw.Draw(image))
    return np.array(image)


def _draw_headings(draw: ImageDraw.ImageDraw, model: ModelIdentity, decision: Decision) -> None:
    draw.text((_MARGIN, 16), f"COVID-19 {decision.upper()}", _COLOUR[decision], _font(40), stroke_width=0.6)
    box = (_OVERLAY_LEFT + 80, 22, PAGE_WIDTH - _MARGIN, 70)
    draw.rectangle(box, outline=_WARNING, width=2)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    draw.text(middle, RESEARCH_ONLY, _WARNING, _font(25), anchor="mm", stroke_width=0.5)
    right = PAGE_WIDTH - _MARGIN
    name, digest = f"{model.name} {model.version}"[:60], model.sha256[:12]
    draw.text((right, 78), name, _TEXT, _font(_SMALL), anchor="ra")
    draw.text((right, 107), f"model {digest}, input {model.recipe}", _QUIET, _font(_SMALL), anchor="ra")
    draw.text((right, 136), f"{model.engine}, {model.precision}", _QUIET, _font(_SMALL), anchor="ra")
    gauge = (_GAUGE_LEFT, _GAUGE_TOP, _GAUGE_LEFT + _GAUGE_WIDTH, _GAUGE_TOP + 10)
    draw.rounded_rectangle(gauge, 5, fill=(52, 57, 66))
    x = _gauge_x(model.threshold)
    draw.line((x, _GAUGE_TOP - 8, x, _GAUGE_TOP + 18), _TEXT, 3)


def _gauge_x(probability: float) -> float:
    return _GAUGE_LEFT + 5 + (_GAUGE_WIDTH - 10) * min(max(probability, 0.0), 1.0)


def _draw_result(
    draw: ImageDraw.ImageDraw, decision: Decision, probability: float, model: ModelIdentity
) -> None:
    side = "at or above" if decision == "positive" else "below"
    text = f"Score {probability:.3f}, {side} the threshold {model.threshold:.3f} ({model.operating_point})"
    draw.text((_MARGIN, 68), text, _TEXT, _font(22))
    x, y = _gauge_x(probability), _GAUGE_TOP + 5
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), _COLOUR[decision], outline=_BACKGROUND, width=2)


def _bar_y(evidence: float) -> float:
    return _PANEL_TOP + _PANEL_HEIGHT - 1 - 40 - (_PANEL_HEIGHT - 150) * evidence / FULL_SCALE


def _paint_bar(page: Page) -> None:
    """The colours as they look on a film: left half over a dark one, right half over a bright one."""
    top, bottom = round(_bar_y(FULL_SCALE)), round(_bar_y(0))
    evidence = np.linspace(FULL_SCALE, 0, bottom - top, dtype=np.float32)
    evidence_HW = np.repeat(evidence[:, None], _BAR_WIDTH, axis=1)
    grey_HW3 = np.full((bottom - top, _BAR_WIDTH, 3), 40, np.uint8)
    grey_HW3[:, _BAR_WIDTH // 2 :] = 190
    page[top:bottom, _BAR_LEFT : _BAR_LEFT + _BAR_WIDTH] = _coloured(grey_HW3, evidence_HW)


def _draw_ticks(draw: ImageDraw.ImageDraw) -> None:
    right = _BAR_LEFT + _BAR_WIDTH
    for tick in range(0, int(FULL_SCALE) + 1, 2):
        y = _bar_y(tick)
        draw.line((right, y, right + 6, y), _QUIET, 2)
        text = f"{tick} or\nmore" if tick == FULL_SCALE else str(tick)
        draw.multiline_text((right + 12, y), text, _TEXT, _font(_SMALL), anchor="lm", spacing=2)
    draw.multiline_text(
        (_BAR_LEFT - 4, _PANEL_TOP), "log-odds\nabove\nthreshold", _TEXT, _font(_SMALL), spacing=3
    )


def _draw_pointer(draw: ImageDraw.ImageDraw, evidence: float, decision: Decision) -> None:
    """Mark the film's own value, which is the map's mean, on the bar."""
    y = _bar_y(min(max(evidence, 0.0), FULL_SCALE))
    x = _BAR_LEFT - 2
    draw.polygon(((x, y), (x - 11, y - 8), (x - 11, y + 8)), fill=_COLOUR[decision])
    bottom = _PANEL_TOP + _PANEL_HEIGHT
    draw.text((_BAR_LEFT - 4, bottom), f"film {evidence:+.1f}", _COLOUR[decision], _font(_SMALL), anchor="ls")

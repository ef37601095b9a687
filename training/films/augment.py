"""Augmentation that takes the publisher's fingerprint off a film.

Where a film comes from shows in its borders, aspect, resolution and compression, and here that all but
gives the class away. So each of them is drawn anew every time a film is shown.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from worker import preprocess

Grey = NDArray[np.uint8]
_BORDERS = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101)


def shrink(inputs_NHW: Grey, size: int) -> Grey:
    """Shrink recipe outputs once to a little more than `size`, so that a crop keeps its sharpness."""
    side = min(inputs_NHW.shape[-1], round(size * 1.25))
    return np.stack([_resize(input_HW, side) for input_HW in inputs_NHW])


def plain(inputs_NHW: Grey, size: int) -> Grey:
    """Recipe outputs at another size, not augmented."""
    return np.stack([_resize(input_HW, size) for input_HW in inputs_NHW])


def augment(film_HW: Grey, size: int, random: Generator) -> Grey:
    """One random view of a film, `(size, size)`, equalised again as the recipe does after a crop."""
    view = _move(film_HW, size, random)
    view = _degrade(view, random)
    view = _erase(view, random)
    view = preprocess.equalise(view.astype(np.int32))
    gain, offset = random.uniform(0.9, 1.1), random.uniform(-12, 12)
    return _grey(np.clip(view * gain + offset, 0, 255))


def _grey(film_HW: Any) -> Grey:
    grey: Grey = film_HW.astype(np.uint8, copy=False)
    return grey


def _resize(film_HW: Grey, side: int, interpolation: int = cv2.INTER_AREA) -> Grey:
    if film_HW.shape[0] == side:
        return film_HW
    return _grey(cv2.resize(film_HW, (side, side), interpolation=interpolation))


def _move(film_HW: Grey, size: int, random: Generator) -> Grey:
    """Crop or pad, change the aspect, rotate, shear and mirror in one interpolation."""
    zoom, aspect = random.uniform(0.70, 1.06), np.exp(random.uniform(-0.18, 0.18))
    width, height = min(zoom * aspect, 1.12), min(zoom / aspect, 1.12)
    angle, shear = np.radians(random.uniform(-10, 10)), random.uniform(-0.06, 0.06)
    mirror = random.choice((-1.0, 1.0))
    turn = np.array([[np.cos(angle), -np.sin(angle) + shear], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([width * mirror, height]) * (film_HW.shape[0] / size)
    room = np.abs(1 - np.array([width, height])) / 2 + 0.03
    centre = (0.5 + random.uniform(-room, room)) * (film_HW.shape[0] - 1)
    offset = centre - linear @ np.full(2, (size - 1) / 2)
    matrix = np.column_stack([linear, offset])
    moved = cv2.warpAffine(
        film_HW,
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=_BORDERS[random.integers(len(_BORDERS))],
        borderValue=(float(random.choice((0, 0, 128, 255))),),
    )
    return _grey(moved)


def _degrade(film_HW: Grey, random: Generator) -> Grey:
    """Resample, blur, add noise and compress, each now and then."""
    size = film_HW.shape[0]
    film = film_HW
    if random.random() < 0.3:
        film = _resize(_resize(film, round(size * random.uniform(0.5, 0.95))), size, cv2.INTER_LINEAR)
    if random.random() < 0.2:
        film = _grey(cv2.GaussianBlur(film, (0, 0), random.uniform(0.4, 1.0)))
    if random.random() < 0.4:
        film = _grey(np.clip(film + random.normal(0, random.uniform(1, 10), (size, size)), 0, 255))
    if random.random() < 0.3:
        quality = (cv2.IMWRITE_JPEG_QUALITY, int(random.integers(30, 95)))
        film = _grey(cv2.imdecode(cv2.imencode(".jpg", film, quality)[1], cv2.IMREAD_GRAYSCALE))
    return film


def _erase(film_HW: Grey, random: Generator) -> Grey:
    """Cover up to two boxes: burned-in letters and arrows stand mainly in films of one class."""
    size = film_HW.shape[0]
    for _ in range(random.integers(3)):
        height, width = (random.uniform(0.05, 0.3, 2) * size).astype(int) + 1
        top, left = (random.random(2) * (size - height, size - width)).astype(int)
        film_HW[top : top + height, left : left + width] = random.integers(256)
    return film_HW

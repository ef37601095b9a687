"""From a chest to grey values: attenuation, scatter, quantum noise, digitising, lead markers."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.phantom.anatomy import Chest, make_chest
from worker.phantom.projection import Beam, Floats, View

# Linear attenuation at the mean energy of a 120 kV beam behind a grid, 1/cm.
_SOFT, _LUNG, _BONE = 0.185, 0.047, 0.42
_HEIGHT = 43.0
"""Of the detector, cm."""
_PITCH = 0.085
"""Of the grid on which path lengths are computed, cm: a film has five times as many samples."""
_SCATTER_SHARE = 0.16
_QUANTA = 9000.0
"""Per pixel in the open beam; a pixel behind the spine gets a hundredth."""


def radiograph(
    seed: int,
    *,
    rows: int = 2500,
    columns: int = 2048,
    bits: int = 12,
    view: View = "PA",
    opacity: float = 0.0,
) -> NDArray[np.uint16]:
    """Project a generated chest. It is labelled PHANTOM by lead letters, as a technologist would.

    Args:
        seed: the patient; the same seed gives the same anatomy in either view.
        rows, columns: size in pixels; the detector is always 43 cm high.
        bits: of the grey values, 8 to 16.
        view: `PA` or `LL` (left lateral).
        opacity: 0 for clear lungs, 1 for lungs with extensive bilateral opacities.

    Returns:
        `(rows, columns)` uint16, bright where the body is dense.
    """
    chest = make_chest(np.random.default_rng((seed, 1)))
    noise = np.random.default_rng((seed, 2, "PA LL".index(view)))
    width = _HEIGHT * columns / rows
    pitch = min(max(_PITCH, _HEIGHT / rows), 2 * _PITCH)
    beam = Beam(view, rows=round(_HEIGHT / pitch), columns=max(round(width / pitch), 8), pitch=pitch)
    primary = np.exp(-_attenuation(chest, beam, opacity, view == "LL", noise))
    scatter = _blur(primary, 2.5 / pitch) * 0.7 + primary.mean() * 0.3
    signal = primary * (1 - _SCATTER_SHARE) + scatter * _SCATTER_SHARE
    log = -np.log(signal)
    # A speed class holds the exposure behind the lungs constant; the noise follows the exposure.
    sigma = np.exp(log / 2) / np.sqrt(_QUANTA)
    grey = _sharpen(log, pitch)
    low, high = np.percentile(grey, (4, 99.7))
    grey = 0.03 + 0.93 * (grey - low) / (high - low)
    film = _at_full_size(grey, rows, columns)
    film += _at_full_size(sigma * 0.9 / (high - low), rows, columns) * _grain(noise, rows, columns)
    _place_markers(film, view)
    full = (1 << bits) - 1
    return np.clip(np.rint(film * full), 0, full).astype(np.uint16)


def _attenuation(
    chest: Chest, beam: Beam, opacity: float, arms_raised: bool, rng: np.random.Generator
) -> Floats:
    body = beam.union(chest.body if arms_raised else chest.body + chest.arms)
    air = np.zeros(beam.shape)
    for lung in chest.lungs:
        air += beam.chords([lung]) - beam.union(chest.in_lungs, beam.interval(lung))
    patches = sum(
        (beam.gaussian(patch.centre, patch.sigma) for patch in chest.opacities), np.zeros(beam.shape)
    )
    filled = np.minimum(0.8 * opacity * patches, 0.6 * air) * _mottle(rng, beam.shape, 0.3, coarsest=24)
    vessels = sum((beam.splat(tubes) for tubes in chest.vessels), np.zeros(beam.shape))
    air = np.maximum(air * _mottle(rng, beam.shape, 0.035) - filled - 0.8 * vessels, 0)
    # Spongy bone is mostly marrow; ribs are flatter than round.
    bone = 0.42 * beam.chords(chest.bones) + 0.85 * beam.splat(chest.ribs)
    if not arms_raised:
        bone += 0.42 * beam.chords(chest.arm_bones) + beam.splat(chest.clavicles)
    soft = np.maximum(body - air - beam.chords(chest.gas), 0)
    attenuation: Floats = _SOFT * soft + _LUNG * air + (_BONE - _SOFT) * np.where(body > 0, bone, 0)
    return attenuation


def _mottle(rng: np.random.Generator, shape: tuple[int, int], strength: float, coarsest: int = 12) -> Floats:
    """A field around 1 with structure at several scales, as parenchyma has."""
    field = np.zeros(shape)
    for size in (coarsest // 4, coarsest // 2, coarsest):
        coarse = rng.standard_normal((shape[0] // size + 2, shape[1] // size + 2))
        field += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    mottle: Floats = np.maximum(1 + strength * field / np.sqrt(3), 0.4)
    return mottle


def _sharpen(log: Floats, pitch: float) -> Floats:
    """What every console does before it sends: less of the coarse contrast, more of the fine."""
    coarse, middle = _blur(log, 4.0 / pitch), _blur(log, 0.4 / pitch)
    result: Floats = 0.62 * coarse + (middle - coarse) + 1.5 * (log - middle)
    return result


def _blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of `sigma` samples; a wide one at a quarter of the size, where it costs little."""
    rows, columns = image.shape
    share = 4 if sigma > 8 else 1
    small = cv2.resize(image, (columns // share, rows // share), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / share)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float64)


def _at_full_size(image: Floats, rows: int, columns: int) -> NDArray[np.float32]:
    way = cv2.INTER_CUBIC if rows > image.shape[0] else cv2.INTER_AREA
    return np.asarray(cv2.resize(image.astype(np.float32), (columns, rows), interpolation=way), np.float32)


def _grain(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Quantum noise of unit variance, blurred a little by the scintillator."""
    grain = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.GaussianBlur(grain, (3, 3), 0.6) * np.float32(2.0), np.float32)


def _place_markers(film: NDArray[np.float32], view: View) -> None:
    """Lead letters: near white, soft at the edges."""
    rows, columns = film.shape
    lead = np.zeros(film.shape, np.uint8)
    scale = columns / 1000
    thick = max(round(3.2 * scale), 1)
    for text, x, y, size in (("PHANTOM", 0.055, 0.075, 1.3), ("L", 0.9 if view == "PA" else 0.06, 0.14, 2.0)):
        cv2.putText(
            lead, text, (int(x * columns), int(y * rows)), cv2.FONT_HERSHEY_SIMPLEX, size * scale, 255, thick
        )
    soft = cv2.GaussianBlur(lead, (0, 0), 0.7 * scale).astype(np.float32) / np.float32(255)
    film += soft * (np.float32(0.97) - film)

"""A cone beam through analytic solids: exact path lengths, no voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

View = Literal["PA", "LL"]
Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]
Window = tuple[slice, slice]

_EVERYWHERE = (slice(None), slice(None))

_DISTANCE = 180.0
"""Source to detector, cm."""


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """A solid; lengths in cm, x to the patient's left, y to the front, z to the head."""

    centre: tuple[float, float, float]
    semi: tuple[float, float, float]
    tilt: float = 0.0
    """Degrees about the y axis (in the coronal plane)."""
    turn: float = 0.0
    """Degrees about the z axis (in the axial plane)."""

    def to_unit(self) -> Floats:
        """The 3x3 matrix that takes offsets from the centre to the unit ball."""
        a, b = np.radians((self.tilt, self.turn))
        tilt = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        turn = np.array([[np.cos(b), np.sin(b), 0], [-np.sin(b), np.cos(b), 0], [0, 0, 1]])
        matrix: Floats = (turn @ tilt) / np.array(self.semi)[:, None]
        return matrix

    def holds(self, points_N3: Floats) -> NDArray[np.bool_]:
        """Which of the points lie inside."""
        offsets = (points_N3 - np.array(self.centre)) @ self.to_unit().T
        inside: NDArray[np.bool_] = (offsets**2).sum(axis=1) < 1
        return inside


@dataclass(frozen=True, kw_only=True)
class Tubes:
    """Curves of one thickness, as points `(N, 3)` that each stand for `step` cm of a curve."""

    points_N3: Floats
    step: float
    radius: float
    hollow: float = 0.0
    """Share of the attenuation that the inner three quarters of the radius lack (marrow)."""


class Beam:
    """Rays from the focus to a detector plane, at `rows` x `columns` samples of `pitch` cm."""

    def __init__(self, view: View, *, rows: int, columns: int, pitch: float) -> None:
        self.shape = rows, columns
        self.pitch = pitch
        # The patient faces the detector (PA), or has the left side against it (LL).
        self._across = np.array((1.0, 0, 0) if view == "PA" else (0, -1.0, 0))
        self._depth = np.array((0, 1.0, 0) if view == "PA" else (1.0, 0, 0))
        self._down = np.array((0, 0, -1.0))
        self._focus = self._depth * ((14.0 if view == "PA" else 17.5) - _DISTANCE)
        self._u = (np.arange(columns) - (columns - 1) / 2)[None, :] * pitch
        self._v = (np.arange(rows) - (rows - 1) / 2)[:, None] * pitch
        self.ray_length_HW = np.sqrt(_DISTANCE**2 + self._u**2 + self._v**2)

    def interval(self, solid: Ellipsoid, window: Window = _EVERYWHERE) -> Interval:
        """Where each ray enters and leaves a solid, as shares of the ray; equal where it misses."""
        unit = solid.to_unit()
        along_u, along_v = unit @ self._across, unit @ self._down
        along_0 = unit @ self._depth * _DISTANCE
        origin = unit @ (self._focus - np.array(solid.centre))
        u, v = self._u[:, window[1]], self._v[window[0]]
        a = (
            (along_u @ along_u * u + 2 * (along_u @ along_0)) * u
            + ((along_v @ along_v * v + 2 * (along_v @ along_0)) * v + along_0 @ along_0)
            + 2 * (along_u @ along_v) * u * v
        )
        b = along_u @ origin * u + (along_v @ origin * v + along_0 @ origin)
        root = np.sqrt(np.maximum(b * b - a * (origin @ origin - 1), 0))
        return (-b - root) / a, (-b + root) / a

    def chords(self, solids: list[Ellipsoid]) -> Floats:
        """Sum of the path lengths in each of the solids, cm."""
        total = np.zeros(self.shape)
        for solid in solids:
            window = self._shadow(solid)
            enter, leave = self.interval(solid, window)
            total[window] += (leave - enter) * self.ray_length_HW[window]
        return total

    def _shadow(self, solid: Ellipsoid) -> Window:
        """Rows and columns outside which no ray meets the solid."""
        u, v, scale = self._project(np.array(solid.centre))
        reach = 1.1 * max(solid.semi) * scale
        left, right = np.searchsorted(self._u[0], (u - reach, u + reach))
        top, bottom = np.searchsorted(self._v[:, 0], (v - reach, v + reach))
        return slice(top, bottom), slice(left, right)

    def _project(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """Detector coordinates (cm) of points, and their magnification."""
        offsets = points - self._focus
        scale = _DISTANCE / (offsets @ self._depth)
        return offsets @ self._across * scale, offsets @ self._down * scale, scale

    def union(self, solids: list[Ellipsoid], within: Interval | None = None) -> Floats:
        """Path length in the union of solids, cm, counted only inside `within`."""
        low, high = within or (np.zeros(self.shape), np.ones(self.shape))
        bounds = [self.interval(solid) for solid in solids]
        enters = np.sort([np.clip(enter, low, high) for enter, _ in bounds], axis=0)
        leaves = np.sort([np.clip(leave, low, high) for _, leave in bounds], axis=0)
        gaps = np.maximum(enters[1:] - leaves[:-1], 0).sum(axis=0)
        length: Floats = (leaves[-1] - enters[0] - gaps) * self.ray_length_HW
        return length

    def gaussian(self, centre: tuple[float, float, float], sigma: float) -> Floats:
        """Path length through a Gaussian ball of peak 1, cm."""
        u, v, scale = self._project(np.array(centre))
        spread = 2 * (sigma * scale) ** 2
        ball: Floats = (
            sigma * np.sqrt(2 * np.pi) * np.exp(-((self._u - u) ** 2 + (self._v - v) ** 2) / spread)
        )
        return ball

    def splat(self, tubes: Tubes) -> Floats:
        """Path length in thin tubes, cm.

        The chord of a cylinder is a line integral over a disc. So the curve's points, spread over the
        detector by length and convolved with a disc, give the tube, foreshortening included.
        """
        rows, columns = self.shape
        u, v, _ = self._project(tubes.points_N3)
        x, y = u / self.pitch + (columns - 1) / 2, v / self.pitch + (rows - 1) / 2
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        seen = (left >= 0) & (left < columns - 1) & (top >= 0) & (top < rows - 1)
        left, top, x, y = left[seen], top[seen], x[seen] - left[seen], y[seen] - top[seen]
        # Each point's length is shared among its four neighbours.
        corners = [(0, 0, (1 - x) * (1 - y)), (1, 0, x * (1 - y)), (0, 1, (1 - x) * y), (1, 1, x * y)]
        length = np.zeros(rows * columns)
        for right, below, share in corners:
            length += np.bincount((top + below) * columns + left + right, share, rows * columns)
        radius = tubes.radius / self.pitch
        half = int(radius) + 2
        kernel = _disc(radius, half) - tubes.hollow * _disc(0.75 * radius, half)
        length *= tubes.step
        spread = cv2.filter2D(
            length.reshape(rows, columns), cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT
        )
        return np.asarray(spread, np.float64)


def _disc(radius: float, half: int) -> Floats:
    """Samples of a disc of `radius` pixels with soft edges on a square of `2 half + 1`."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    soft = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    disc: Floats = soft * (np.pi * radius**2 / soft.sum())
    return disc

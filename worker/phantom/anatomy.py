"""A chest that nobody has: solids and curves drawn from a seed. Lengths in cm, origin in mid-chest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.phantom.projection import Ellipsoid, Floats, Tubes

_STEP = 0.06
_SIDES = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Opacity:
    """A soft-edged patch of filled lung: a Gaussian ball of `sigma` cm."""

    centre: tuple[float, float, float]
    sigma: float


@dataclass(frozen=True, kw_only=True)
class Chest:
    """One generated patient."""

    body: list[Ellipsoid]
    """Soft tissue, as a union."""
    arms: list[Ellipsoid]
    """Soft tissue that leaves the beam when the arms are raised."""
    lungs: list[Ellipsoid]
    in_lungs: list[Ellipsoid]
    """What displaces the lungs: heart, great vessels, diaphragm."""
    gas: list[Ellipsoid]
    """Trachea, bronchi, stomach bubble."""
    bones: list[Ellipsoid]
    arm_bones: list[Ellipsoid]
    ribs: Tubes
    clavicles: Tubes
    vessels: list[Tubes]
    opacities: list[Opacity]


def make_chest(rng: np.random.Generator) -> Chest:
    """Draw a patient: habitus, heart size, inspiration and vessel trees vary with the generator."""
    wide = rng.uniform(0.93, 1.06)
    breath = rng.uniform(-1.2, 0.8)
    heart = rng.uniform(0.92, 1.1)
    lungs = [
        Ellipsoid(
            centre=(side * 7.3 * wide, -0.6, -11),
            semi=(6.7 * wide, 9.3, 26.5),
            tilt=-side * rng.uniform(2, 4),
        )
        for side in _SIDES
    ]
    mediastinum = _mediastinum(heart, rng)
    domes = [
        Ellipsoid(centre=(-6.2 * wide, 1.0, -24.5 + breath), semi=(10.6, 13.0, 14.6), tilt=4),
        Ellipsoid(centre=(6.2 * wide, 1.0, -25.7 + breath), semi=(10.6, 13.0, 14.6), tilt=-4),
    ]
    in_lungs = mediastinum + domes
    trees = [_vessel_tree(side, lungs[index], in_lungs, rng) for index, side in enumerate(_SIDES)]
    return Chest(
        body=_torso(wide, rng),
        arms=_arms(wide),
        lungs=lungs,
        in_lungs=in_lungs,
        gas=[
            Ellipsoid(centre=(-0.2, -1, 13), semi=(0.85, 0.8, 9.5)),
            Ellipsoid(centre=(-2.2, -1, 2.9), semi=(0.6, 0.6, 2.7), tilt=42),
            Ellipsoid(centre=(2.4, -1, 2.6), semi=(0.5, 0.5, 3.0), tilt=-52),
            Ellipsoid(
                centre=(6.5, 2, -14.2 + breath), semi=(rng.uniform(1.5, 3.2), 2.5, rng.uniform(0.9, 1.6))
            ),
        ],
        bones=_spine(),
        arm_bones=_shoulder_girdle(wide),
        ribs=Tubes(points_N3=_rib_cage(wide), step=_STEP, radius=0.62, hollow=0.75),
        clavicles=Tubes(points_N3=_clavicles(wide), step=_STEP, radius=0.62, hollow=0.6),
        vessels=[
            Tubes(points_N3=points, step=_STEP, radius=radius)
            for tree in trees
            for radius, points in sorted(tree.items())
        ],
        opacities=_opacities(wide, rng),
    )


def _torso(wide: float, rng: np.random.Generator) -> list[Ellipsoid]:
    padding = rng.uniform(0.0, 1.4)
    torso = [
        Ellipsoid(centre=(0, 0, -14), semi=(15.4 * wide + padding, 10.6 + padding, 48)),
        Ellipsoid(centre=(0, -1.5, 22), semi=(6.0, 6.0, 10)),
    ]
    if rng.random() < 0.5:
        depth = rng.uniform(2.0, 4.0)
        torso += [Ellipsoid(centre=(s * 7.8, 9.0 + padding, -6.5), semi=(6.2, depth, 6.0)) for s in _SIDES]
    return torso


def _arms(wide: float) -> list[Ellipsoid]:
    return [
        solid
        for side in _SIDES
        for solid in (
            Ellipsoid(centre=(side * 13.5 * wide, -1.5, 12.5), semi=(8.2, 6.2, 6.4), tilt=side * 28),
            Ellipsoid(centre=(side * 7.5, -2.5, 17.5), semi=(9.5, 4.2, 4.0), tilt=side * 20),
            Ellipsoid(centre=(side * 14.5, -6, 3), semi=(3.0, 3.6, 11), tilt=-side * 4),
        )
    ]


def _mediastinum(heart: float, rng: np.random.Generator) -> list[Ellipsoid]:
    knob = rng.uniform(1.5, 2.1)
    return [
        Ellipsoid(centre=(2.6, 3.2, -6.8), semi=(6.7 * heart, 4.6 * heart, 4.4 * heart), tilt=30),
        Ellipsoid(centre=(-1.3, 3.0, -6.4), semi=(3.6 * heart, 3.8, 4.6 * heart)),
        Ellipsoid(centre=(0.6, 3.0, -1.6), semi=(3.2 * heart, 3.2, 4.2)),  # pulmonary trunk, left atrium
        Ellipsoid(centre=(1.6, -1.0, 5.6), semi=(knob, 2.6, knob + 0.2)),  # aortic arch
        Ellipsoid(centre=(1.7, -5.4, -7), semi=(1.25, 1.25, 13)),  # descending aorta
        Ellipsoid(centre=(-1.5, 0.8, 6), semi=(1.6, 2.2, 9.5)),  # superior vena cava
        Ellipsoid(centre=(0.2, -1.0, 10), semi=(2.5, 4.0, 12)),
        Ellipsoid(centre=(0, -6.2, -4), semi=(2.3, 3.2, 24)),  # spine and its muscles
    ]


def _spine() -> list[Ellipsoid]:
    bones = [Ellipsoid(centre=(0, 8.6, 3.0), semi=(1.7, 0.55, 8.5))]  # sternum
    for level in range(17):
        z, size = 20 - level * 2.45, 0.82 + 0.014 * level
        forward = -6.6 + 1.8 * ((z - 1) / 20) ** 2
        bones += [
            Ellipsoid(centre=(0, forward, z), semi=(1.75 * size, 1.5 * size, 1.05 * size)),
            Ellipsoid(centre=(0, forward - 3.6, z - 1.4), semi=(0.32, 1.4, 0.8)),  # spinous process
            Ellipsoid(centre=(0, forward - 2.2, z - 0.1), semi=(3.0 * size, 0.45, 0.45)),  # transverse
        ]
        bones += [
            Ellipsoid(centre=(s * 1.15 * size, forward - 1.6, z + 0.25), semi=(0.34, 0.6, 0.5))
            for s in _SIDES
        ]
    return bones


def _shoulder_girdle(wide: float) -> list[Ellipsoid]:
    return [
        solid
        for side in _SIDES
        for solid in (
            Ellipsoid(
                centre=(side * 14.2 * wide, -8, 6.5), semi=(2.9, 0.35, 7.0), tilt=side * 12, turn=side * 22
            ),
            Ellipsoid(centre=(side * 14.6 * wide, -8.2, 11.6), semi=(4.2, 0.6, 0.6), tilt=side * 22),
            Ellipsoid(centre=(side * 17.6 * wide, -1.5, 12.6), semi=(2.3, 2.3, 2.5)),
            Ellipsoid(centre=(side * 19.0 * wide, -1.5, 4), semi=(1.15, 1.15, 10), tilt=-side * 6),
        )
    ]


def _rib_cage(wide: float) -> Floats:
    lateral = (5.4, 8.4, 10.6, 12.1, 13.1, 13.7, 14.0, 14.1, 13.9, 13.3, 12.2)
    curves = []
    for rib, reach in enumerate(lateral):
        far = np.radians(150 if rib < 7 else 128 - 13 * (rib - 7))
        angle = np.linspace(np.radians(9), far, 700)
        turn = angle / np.pi
        deep = 6.0 + 3.0 * min(rib, 4) / 4
        x = reach * wide * np.sin(angle) ** 0.85
        y = -0.6 - deep * np.cos(angle)
        z = 16.8 - 2.45 * rib + 0.8 * np.sin(2 * angle) - (5.5 + 0.75 * rib) * turn**1.35
        curve = _evenly(np.stack([x, y, z], axis=1))
        curves += [curve, curve * (-1, 1, 1)]
    return np.concatenate(curves)


def _clavicles(wide: float) -> Floats:
    t = np.linspace(0, 1, 300)
    x = (1.7 + 14.0 * t) * wide
    y = 6.0 - 7.0 * t + 1.2 * np.sin(2 * np.pi * t)
    z = 12.2 + 4.4 * t**0.8 - 1.1 * np.sin(np.pi * t) ** 2
    curve = _evenly(np.stack([x, y, z], axis=1))
    return np.concatenate([curve, curve * (-1, 1, 1)])


def _evenly(curve_N3: Floats) -> Floats:
    """The same curve with a point each `_STEP` cm."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve_N3, axis=0), axis=1))])
    at = np.arange(0, along[-1], _STEP)
    return np.stack([np.interp(at, along, curve_N3[:, axis]) for axis in range(3)], axis=1)


def _vessel_tree(
    side: float, lung: Ellipsoid, in_lungs: list[Ellipsoid], rng: np.random.Generator
) -> dict[float, Floats]:
    """Branches from the hilum, halving until they are too thin to see; by radius."""
    count = 11
    start = np.array((side * 2.6, -0.5, 0.3 + 0.6 * (side > 0)))
    points = start + rng.normal(0, (0.3, 0.8, 1.0), (count, 3))
    fan = np.linspace(-1.5, 1.25, count) + rng.normal(0, 0.1, count)
    headings = np.stack([side * np.cos(fan), rng.normal(0, 0.5, count), np.sin(fan)], axis=1)
    tree: dict[float, Floats] = {}
    radius, length = 0.4, 3.4
    while radius > 0.05:
        headings /= np.linalg.norm(headings, axis=1, keepdims=True)
        steps = np.arange(0, length, _STEP)[:, None, None]
        bend = rng.normal(0, 0.03, headings.shape)
        line_SN3 = points + headings * steps + bend * steps**2
        inside = line_SN3.reshape(-1, 3)
        inside = inside[lung.holds(inside)]
        for solid in in_lungs:
            inside = inside[~solid.holds(inside)]
        tree[radius] = inside
        points = np.repeat(line_SN3[-1], 2, axis=0)
        headings = np.repeat(headings, 2, axis=0) + rng.normal(0, 0.42, (2 * len(headings), 3))
        radius, length = radius * 0.74, length * 0.86
    return tree


def _opacities(wide: float, rng: np.random.Generator) -> list[Opacity]:
    """Patches on both sides, peripheral and in the lower zones, as a viral pneumonia likes them."""
    return [
        Opacity(
            centre=(side * wide * rng.uniform(7.5, 12.0), rng.uniform(-6, 3), rng.uniform(-10, 1)),
            sigma=rng.uniform(1.0, 2.4),
        )
        for side in _SIDES
        for _ in range(5)
    ]

"""Generated films and one bundle made from them: these tests need no real film."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

FIELDS = (
    "file",
    "target",
    "split",
    "patient_group",
    "origin",
    "licence",
    "licence_class",
    "srcbal",
    "seedlike",
    "label",
    "view",
    "sha256",
)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads of one team wait for each other in a loop, which is slow beside other work."""
    torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A folder with generated films, and its records for a test to spoil."""

    folder: Path
    records: list[dict[str, str]]

    def write(self) -> Path:
        with (self.folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(self.records)
        return self.folder


def film(random: np.random.Generator, positive: bool) -> np.ndarray:
    """A smooth grey picture; a positive one is wider, and bright on its left."""
    height, width = 200, 240 if positive else 200
    coarse = random.uniform(60, 120, (6, 6)).astype(np.float32)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += np.linspace(80 if positive else 0, 0 if positive else 80, width, dtype=np.float32)
    return np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def make_catalogue(folder: Path) -> Catalogue:
    """Twenty-four films of as many patients: both classes in each split, some not free to learn from."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(7)
    records = []
    for number in range(24):
        positive, split = number % 2 == 1, ("train", "train", "dev", "test")[number // 2 % 4]
        name = f"images/film_{number:02d}.jpg"
        content = cv2.imencode(".jpg", film(random, positive))[1].tobytes()
        (folder / name).write_bytes(content)
        free = number % 5 != 0
        records.append(
            {
                "file": name,
                "target": "covid" if positive else "noncovid",
                "split": split,
                "patient_group": f"patient-{number}",
                "origin": "generated",
                "licence": "CC0" if free else "CC BY-NC",
                "licence_class": "permissive" if free else "non-commercial",
                "srcbal": str(int(number // 2 % 3 == 0)),
                "seedlike": "1",
                "label": "covid" if positive else ("pneumonia", "normal")[number // 2 % 2],
                "view": ("AP", "PA", "")[number % 3],
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    catalogue = Catalogue(folder=folder, records=records)
    catalogue.write()
    return catalogue


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """Generated films that this test may spoil."""
    return make_catalogue(tmp_path / "films")


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated films to read."""
    return make_catalogue(tmp_path_factory.mktemp("data") / "films").folder

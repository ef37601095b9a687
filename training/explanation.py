"""The tests of a network's maps, and `explanation.json` beside its evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from training import datasets
from training.datasets import Row
from training.densenet import DenseNet121
from training.device import Device
from training.localise import Location, locate
from training.lungs import lung_fields
from training.maps import activation_maps, saliency_maps
from training.randomise import Randomised, cascade
from training.removal import Removal, remove

EXPLANATION = "explanation.json"
CLASSES = {"COVID": True, "non-COVID": False}
log = get_logger("explain")


class Pointing(BaseModel):
    """Where one kind of map points on films of one class."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    map: str
    """`cam` on every film of the split, `saliency` on the sample."""
    films_of: str
    """`COVID` or `non-COVID`."""
    location: Location


class Explanation(BaseModel):
    """The outcome of `explain`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    weights_sha256: str
    """Of the checkpoint, or of the bundle's `model.onnx`."""
    data_sha256: str
    split: str
    films: int
    average_lungs: int
    """Films on which no plausible lungs were found, so that an average shape stands for them."""
    sample: int
    """Films of each class that randomisation (both) and removal (COVID) are measured on."""
    seed: int
    pointing: tuple[Pointing, ...]
    randomised: tuple[Randomised, ...]
    removal: tuple[Removal, ...]


def explain(
    model: DenseNet121,
    rows: Sequence[Row],
    inputs_NHW: NDArray[np.uint8],
    device: Device,
    *,
    weights_sha256: str,
    split: str = "dev",
    sample: int = 12,
    temperature: float = 1.0,
    seed: int = 0,
) -> Explanation:
    """Test the maps of a network.

    Args:
        model: the network, on the device.
        rows: the catalogue.
        inputs_NHW: recipe outputs in the order of `rows`.
        device: what it is computed on.
        weights_sha256: digest of the weights.
        split: whose films are looked at.
        sample: films of each class for what takes many passes: about 130 a film.
        temperature: probability = sigmoid(logit / temperature).
        seed: of the sample and of everything that is drawn.

    Raises:
        ConfigurationError: the split lacks a class.
    """
    chosen = np.array([row.split == split for row in rows])
    labels_N, films_NHW = datasets.targets(rows)[chosen], inputs_NHW[chosen]
    patients_N = np.array([row.patient_group for row in rows])[chosen]
    if not 0 < labels_N.sum() < len(labels_N):
        raise ConfigurationError(f"The split `{split}` lacks a class: there is nothing to compare.")
    lungs = [lung_fields(film_HW) for film_HW in films_NHW]
    cams_NHW = activation_maps(model, films_NHW, device)
    log.info("activation_maps_done", films=len(films_NHW))
    random = np.random.default_rng(seed)
    drawn = {
        name: np.sort(random.permutation(np.flatnonzero(labels_N == positive))[:sample])
        for name, positive in CLASSES.items()
    }
    both = np.concatenate(list(drawn.values()))
    saliency = dict(zip(both.tolist(), saliency_maps(model, films_NHW[both], device), strict=True))
    saliency_of = {name: np.stack([saliency[i] for i in of]) for name, of in drawn.items()}
    pointing = [
        Pointing(
            map=kind,
            films_of=name,
            location=locate(maps_NHW, [lungs[i] for i in of], patients_N[of]),
        )
        for name, positive in CLASSES.items()
        for kind, of, maps_NHW in (
            ("cam", np.flatnonzero(labels_N == positive), cams_NHW[labels_N == positive]),
            ("saliency", drawn[name], saliency_of[name]),
        )
    ]
    log.info("pointing_done")
    covid = drawn["COVID"]
    removal = remove(
        model,
        films_NHW[covid],
        patients_N[covid],
        {"cam": cams_NHW[covid], "saliency": saliency_of["COVID"]},
        device,
        temperature=temperature,
        seed=seed,
    )
    log.info("removal_done")
    original = cams_NHW[both], np.concatenate(list(saliency_of.values()))
    randomised = cascade(model, films_NHW[both], patients_N[both], original, device, seed=seed)
    return Explanation(
        weights_sha256=weights_sha256,
        data_sha256=datasets.digest(rows),
        split=split,
        films=len(films_NHW),
        average_lungs=sum(found.average for found in lungs),
        sample=sample,
        seed=seed,
        pointing=tuple(pointing),
        randomised=randomised,
        removal=removal,
    )

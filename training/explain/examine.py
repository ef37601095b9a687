"""Test the maps of a network: do they look at lungs, at what was learnt, and at what the score rests on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from training.device import best_device
from training.evaluation.evaluate import Evaluation
from training.explain.explanation import Explanation, Pointing
from training.explain.localise import locate
from training.explain.lungs import lung_fields
from training.explain.maps import activation_maps, logits, saliency_maps
from training.explain.randomise import cascade
from training.explain.regions import cover
from training.explain.removal import remove
from training.films import datasets
from training.films.datasets import Row
from training.networks.densenet import DenseNet121
from training.networks.reopen import reopen
from training.train import load_network
from worker.bundle import Bundle

log = get_logger("explain")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is explained."""

    model: DenseNet121
    sha256: str
    """Of the checkpoint or of `model.onnx`."""
    temperature: float
    """probability = sigmoid(logit / temperature)."""


def trained(run: Path, evaluation: Evaluation) -> Network:
    """The network of an evaluated run."""
    return Network(
        model=load_network(run), sha256=evaluation.checkpoint_sha256, temperature=evaluation.temperature
    )


def served(directory: Path) -> Network:
    """The network of a bundle."""
    bundle = Bundle(directory)
    manifest = bundle.manifest
    return Network(model=reopen(bundle), sha256=manifest.model.sha256, temperature=manifest.temperature)


def explain(
    network: Network,
    rows: Sequence[Row],
    inputs_NHW: NDArray[np.uint8],
    *,
    split: str = "dev",
    sample: int = 12,
    seed: int = 0,
) -> Explanation:
    """Test the maps of a network.

    Args:
        network: what is explained.
        rows: the catalogue.
        inputs_NHW: recipe outputs in the order of `rows`.
        split: whose films are looked at.
        sample: films of each class, at most, for what takes many passes: about 90 a film.
        seed: of the sample and of everything that is drawn.

    Raises:
        ConfigurationError: the split lacks a class.
    """
    chosen_N = np.array([row.split == split for row in rows])
    labels_N, films_NHW = datasets.targets(rows)[chosen_N], inputs_NHW[chosen_N]
    patients_N = np.array([row.patient_group for row in rows])[chosen_N]
    if not 0 < labels_N.sum() < len(labels_N):
        raise ConfigurationError(f"The split `{split}` lacks a class: there is nothing to compare.")
    device, model = best_device(), network.model.eval()
    model.to(device.device)
    lungs = [lung_fields(film_HW) for film_HW in films_NHW]
    cams_NHW = activation_maps(model, films_NHW, device)
    log.info("activation_maps_done", films=len(films_NHW))

    random = np.random.default_rng(seed)
    classes = {"COVID": np.flatnonzero(labels_N), "non-COVID": np.flatnonzero(~labels_N)}
    sampled = {name: np.sort(random.permutation(of)[:sample]) for name, of in classes.items()}
    saliency = {name: saliency_maps(model, films_NHW[of], device) for name, of in sampled.items()}
    pointing = tuple(
        Pointing(map=kind, films_of=name, location=locate(maps_NHW, [lungs[i] for i in of], patients_N[of]))
        for name in classes
        for kind, of, maps_NHW in (
            ("cam", classes[name], cams_NHW[classes[name]]),
            ("saliency", sampled[name], saliency[name]),
        )
    )
    log.info("pointing_done")

    def logits_of(shown_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        return logits(model, shown_NHW, device)

    regions = cover(logits_of, films_NHW, lungs, labels_N, patients_N)
    log.info("regions_done", films=len(films_NHW))

    covid = sampled["COVID"]
    orders = {"cam": cams_NHW[covid], "saliency": saliency["COVID"]}
    removal = remove(
        model, films_NHW[covid], patients_N[covid], orders, device, temperature=network.temperature, seed=seed
    )
    log.info("removal_done", films=len(covid))

    both = np.concatenate(list(sampled.values()))
    original = cams_NHW[both], np.concatenate(list(saliency.values()))
    randomised = cascade(model, films_NHW[both], patients_N[both], original, device, seed=seed)
    log.info("randomisation_done", films=len(both))
    return Explanation(
        weights_sha256=network.sha256,
        data_sha256=datasets.digest(rows),
        split=split,
        films=len(films_NHW),
        average_lungs=sum(found.average for found in lungs),
        sample=sample,
        seed=seed,
        pointing=pointing,
        randomised=randomised,
        removal=removal,
        regions=regions,
    )

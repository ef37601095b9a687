"""What the tests of a network's maps found: `explanation.json` beside its evaluation."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dicom_node.errors import ConfigurationError
from training.explain.localise import Location
from training.explain.randomise import Randomised
from training.explain.regions import Regions
from training.explain.removal import Removal
from training.files import write_whole

EXPLANATION = "explanation.json"


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
    """Films of each class, at most, that randomisation (both) and removal (COVID) are measured on."""
    seed: int
    pointing: tuple[Pointing, ...]
    randomised: tuple[Randomised, ...]
    removal: tuple[Removal, ...]
    regions: Regions | None = None
    """On every film of the split; None in older results."""


def write_explanation(directory: Path, explanation: Explanation) -> None:
    """Write `explanation.json`."""
    write_whole(directory / EXPLANATION, explanation.model_dump_json(indent=2) + "\n")


def read_explanation(directory: Path, weights_sha256: str, data_sha256: str) -> Explanation | None:
    """What was found of these weights on these films; None where nothing was looked for.

    Raises:
        ConfigurationError: the file is unusable, or of other weights or films.
    """
    path = directory / EXPLANATION
    try:
        explanation = Explanation.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise ConfigurationError(f"{path} is not usable: run `explain` again.") from None
    if (explanation.weights_sha256, explanation.data_sha256) != (weights_sha256, data_sha256):
        raise ConfigurationError(f"{path} is of other weights or films: run `explain` again.")
    return explanation

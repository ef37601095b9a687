"""A model bundle: `model.onnx` and a manifest that binds recipe, threshold and golden cases to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicom_node.errors import ConfigurationError
from worker import preprocess


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OperatingPoint(_Part):
    """A threshold and what it gave where it was chosen."""

    name: str
    """How it was chosen and on what, e.g. `youden@dev`."""
    probability: float = Field(ge=0, le=1)
    sensitivity: float
    specificity: float


class File(_Part):
    """A file of the bundle with its digest."""

    name: str
    sha256: str


class Quantised(_Part):
    """The same network with most convolutions in eight bits, as OpenVINO reads it."""

    graph: File
    """`.xml`"""
    weights: File
    """`.bin`, beside the graph and of the same name."""
    films: int
    """From which the ranges of activations were taken."""


class GoldenCase(_Part):
    """A generated film and what the reference engine (torch, float32) made of it."""

    name: str
    logit: float


class Golden(_Part):
    """Cases that an engine replays before it serves."""

    inputs: File
    """`.npz` without pickles: `inputs_BHW` uint8 and `cams_Bhw` float32."""
    logit_tolerance: float
    """Largest absolute difference of a logit."""
    cam_tolerance: float
    """Largest absolute difference of a map, as a share of the reference map's range."""
    cases: tuple[GoldenCase, ...]


class Manifest(_Part):
    """`manifest.json`."""

    format: int = 1
    name: str
    version: str
    model: File
    recipe: str
    """Name of the preprocessing recipe; a worker with another recipe refuses the bundle."""
    size: int
    positive: str = "COVID-19"
    temperature: float = 1.0
    """probability = sigmoid(logit / temperature)."""
    operating_point: OperatingPoint
    """The one in use; `threshold_of` says for which model it was chosen."""
    threshold_of: str
    """SHA-256 of the model that the operating points belong to."""
    operating_points: tuple[OperatingPoint, ...] = ()
    golden: Golden
    int8: Quantised | None = None
    """None until `training quantise` has made it; served where `worker.engine_precision` asks for it."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Data digests, configuration and metrics of the training run."""


class Bundle:
    """A bundle on disk whose digests were all checked."""

    def __init__(self, directory: Path, *, pinned: str = "") -> None:
        """Open and verify.

        Args:
            directory: where the bundle is.
            pinned: SHA-256 that its manifest must have; with it nobody can exchange model and manifest
                together. Empty: any manifest will do.

        Raises:
            ConfigurationError: a file is missing or altered, or the bundle needs another recipe.
        """
        self.directory = directory
        path = directory / "manifest.json"
        try:
            content = path.read_bytes()
            self.sha256 = hashlib.sha256(content).hexdigest()
            if pinned not in ("", self.sha256):
                raise ConfigurationError(
                    f"The manifest {path} is not the one that worker.bundle_sha256 names."
                )
            self.manifest = Manifest.model_validate_json(content)
        except OSError:
            raise ConfigurationError(f"No model bundle at {directory}: {path.name} cannot be read.") from None
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ConfigurationError(f"The manifest {path} is not usable at `{where}`.") from None
        manifest = self.manifest
        self.model_path = self._verified(manifest.model)
        self._golden_path = self._verified(manifest.golden.inputs)
        self.int8_path = self._verified(manifest.int8.graph) if manifest.int8 else None
        if manifest.int8:
            self._verified(manifest.int8.weights)
        if manifest.threshold_of != manifest.model.sha256:
            raise ConfigurationError(
                f"The threshold in {path} was chosen for another model: export the bundle again."
            )
        if (manifest.recipe, manifest.size) != (preprocess.RECIPE, preprocess.SIZE):
            raise ConfigurationError(
                f"The bundle {directory} wants recipe {manifest.recipe}; this worker has {preprocess.RECIPE}."
            )

    def _verified(self, file: File) -> Path:
        self._read(file)
        return self._path(file)

    def _path(self, file: File) -> Path:
        return self.directory / Path(file.name).name

    def _read(self, file: File) -> bytes:
        path = self._path(file)
        try:
            content = path.read_bytes()
        except OSError:
            raise ConfigurationError(f"The bundle file {path} cannot be read.") from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise ConfigurationError(f"The bundle file {path} is not the one that its manifest names.")
        return content

    def network_path(self, precision: Literal["native", "int8"]) -> Path:
        """The file that OpenVINO reads.

        Raises:
            ConfigurationError: eight bits are asked for, and the bundle has none.
        """
        if precision == "native":
            return self.model_path
        if self.int8_path is None:
            raise ConfigurationError(
                f"The bundle {self.directory} has no eight-bit network: make it with `python -m training "
                'quantise`, or set worker.engine_precision = "native".'
            )
        return self.int8_path

    def model(self) -> bytes:
        """The content of `model.onnx`, as its digest says.

        Raises:
            ConfigurationError: the file has changed since the bundle was opened.
        """
        return self._read(self.manifest.model)

    def probability(self, logit: float) -> float:
        """Calibrated probability of the positive class."""
        return float(1.0 / (1.0 + np.exp(-logit / self.manifest.temperature)))

    def golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Inputs `(B, H, W)` and reference maps `(B, h, w)` of the golden cases."""
        with np.load(self._golden_path, allow_pickle=False) as arrays:
            return arrays["inputs_BHW"], arrays["cams_Bhw"]


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write `manifest.json`, readable and in a stable order; the one before stays until this one is whole."""
    # What is absent is not named: a worker that knows no eight bits can read it then.
    absent = {"int8"} if manifest.int8 is None else set()
    text = json.dumps(manifest.model_dump(mode="json", exclude=absent), indent=2, ensure_ascii=False)
    temporary = directory / "manifest.json.part"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(directory / "manifest.json")

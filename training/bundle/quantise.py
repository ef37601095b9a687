"""The bundle's network with convolutions in eight bits, for processors, behind the same parity gate.

The first dense block stays as it is: on the shipped model it makes nearly all of the difference. What adds,
normalises and pools stays too, and so do the last features, whose weighted sum is the map and the logit.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError
from worker.bundle import Bundle, File, Quantised, write_manifest
from worker.engines.openvino import OpenVinoEngine
from worker.parity import Parity, measure_parity
from worker.preprocess import to_batch
from worker.settings import WorkerSection

GRAPH, WEIGHTS = "model-int8.xml", "model-int8.bin"
_WHOLE_CONVOLUTIONS = 14
"""The stem, the first dense block and the transition behind it."""
_WHOLE_OPERATIONS = ("Multiply", "Add", "Subtract", "AvgPool", "MaxPool", "ReduceMean", "ReduceSum", "MatMul")


def quantise(directory: Path, inputs_NHW: NDArray[np.uint8]) -> Parity:
    """Put an eight-bit network into a bundle, if it passes the parity gate with the bundle's tolerances.

    Args:
        directory: the bundle; its manifest, and so its digest, are others afterwards.
        inputs_NHW: recipe outputs from which the ranges of activations are taken.

    Returns:
        How far it is from the reference at worst.

    Raises:
        ConfigurationError: the bundle is unusable, or the network does not pass; the bundle is as it was.
    """
    bundle = Bundle(directory)
    with tempfile.TemporaryDirectory(prefix="covariance-quantise-") as name:
        tried = Path(name) / directory.name
        shutil.copytree(directory, tried)
        _write(bundle, inputs_NHW, tried / GRAPH)
        parts = {part: File(name=part, sha256=_digest(tried / part)) for part in (GRAPH, WEIGHTS)}
        made = Quantised(graph=parts[GRAPH], weights=parts[WEIGHTS], films=len(inputs_NHW))
        manifest = bundle.manifest.model_copy(update={"int8": made})
        write_manifest(manifest, tried)
        settings = WorkerSection(
            engine="openvino", engine_precision="int8", engine_cache=Path(name) / "engine-cache"
        )
        candidate = Bundle(tried)
        engine = OpenVinoEngine(candidate, settings)
        try:
            parity = measure_parity(candidate, engine)
        finally:
            engine.close()
        for part in parts:
            shutil.copyfile(tried / part, directory / part)
    write_manifest(manifest, directory)
    return parity


def _write(bundle: Bundle, inputs_NHW: NDArray[np.uint8], graph: Path) -> None:
    # Importing either reports the import to its makers, unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import nncf  # noqa: PLC0415 (seconds to load)
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters  # noqa: PLC0415
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "nncf is not installed here: `make install EXTRAS=training` brings it."
        ) from None
    import openvino as ov  # noqa: PLC0415

    model = ov.Core().read_model(bundle.model_path)
    size = bundle.manifest.size
    model.reshape([1, 1, size, size])
    convolutions = [
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "Convolution"
    ]
    films = nncf.Dataset([to_batch([input_HW]) for input_HW in inputs_NHW])
    eight_bits = nncf.quantize(
        model,
        films,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(inputs_NHW),
        ignored_scope=nncf.IgnoredScope(
            names=convolutions[:_WHOLE_CONVOLUTIONS], types=list(_WHOLE_OPERATIONS), validate=False
        ),
        # The largest value of a channel is a mark or a border more often than a lung.
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MEAN_QUANTILE
        ),
    )
    ov.save_model(eight_bits, graph)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

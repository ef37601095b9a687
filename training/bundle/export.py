"""From a checkpoint to a bundle: ONNX with half-precision features, golden cases, manifest."""

from __future__ import annotations

import copy
import hashlib
import io
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError
from training.evaluation.evaluate import Evaluation
from training.files import write_whole
from training.networks.densenet import DenseNet121
from worker import preprocess
from worker.bundle import File, Golden, GoldenCase, Manifest, write_manifest
from worker.phantom.radiograph import radiograph

MODEL, GOLDEN = "model.onnx", "golden.npz"
OPSET = 18
CAM_TOLERANCE = 0.05
_FEWEST_CASES = 3
_PHANTOMS = tuple((seed, opacity) for seed in (11, 12, 13) for opacity in (0.0, 0.5, 1.0))


def export(
    model: DenseNet121,
    evaluation: Evaluation,
    directory: Path,
    *,
    version: str,
    training: dict[str, object],
    logit_tolerance: float = 0.1,
) -> Manifest:
    """Write model, golden cases and manifest; the manifest comes last, since it names the others.

    Args:
        model: the network in float32, which is the reference.
        evaluation: temperature and thresholds of that network.
        directory: the bundle.
        version: of the bundle.
        training: what the manifest keeps about the run.
        logit_tolerance: largest difference of a logit with which an engine may serve.

    Raises:
        ConfigurationError: too few golden cases are clear of the threshold.
    """
    directory.mkdir(parents=True, exist_ok=True)
    point = evaluation.operating_points[0]
    threshold_logit = _logit_of(point.probability) * evaluation.temperature
    cases = _write_golden(model, directory / GOLDEN, threshold_logit, 2 * logit_tolerance)
    write_onnx(model, directory / MODEL)
    model_sha256 = _digest(directory / MODEL)
    manifest = Manifest(
        name=directory.name,
        version=version,
        model=File(name=MODEL, sha256=model_sha256),
        recipe=preprocess.RECIPE,
        size=preprocess.SIZE,
        temperature=evaluation.temperature,
        operating_point=point,
        threshold_of=model_sha256,
        operating_points=evaluation.operating_points,
        golden=Golden(
            inputs=File(name=GOLDEN, sha256=_digest(directory / GOLDEN)),
            logit_tolerance=logit_tolerance,
            cam_tolerance=CAM_TOLERANCE,
            cases=cases,
        ),
        training=training,
    )
    write_manifest(manifest, directory)
    return manifest


def write_onnx(model: DenseNet121, path: Path) -> None:
    """Export with `features` in half precision, float32 inputs and outputs, and a free batch size."""
    half = copy.deepcopy(model).eval()
    half.features.half()
    side = preprocess.SIZE
    program = torch.onnx.export(
        half,
        (torch.zeros(2, 1, side, side),),
        dynamo=True,
        input_names=["pixels"],
        output_names=["logit", "cam"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("The exporter gave no model.")
    graph = program.model_proto
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    write_whole(path, graph.SerializeToString(deterministic=True))


def _strip(graph: onnx.ModelProto) -> None:
    # The exporter notes source lines with the paths of this machine; a bundle is the same everywhere.
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for part in (graph.graph.node, graph.graph.input, graph.graph.output, graph.graph.initializer):
        for item in part:
            del item.metadata_props[:]
            item.ClearField("doc_string")
    del graph.graph.value_info[:]


def reference(
    model: DenseNet121, inputs_BHW: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits `(B,)` and maps `(B, h, w)` of recipe outputs, in float32."""
    with torch.inference_mode():
        logits_B, cams_Bhw = model.eval()(torch.from_numpy(preprocess.to_batch(list(inputs_BHW))))
    return logits_B.numpy(), cams_Bhw.numpy()


def _write_golden(
    model: DenseNet121, path: Path, threshold_logit: float, margin: float
) -> tuple[GoldenCase, ...]:
    """Phantoms and what the reference makes of them, none so near the threshold that rounding flips it."""
    inputs_BHW = _phantoms()
    logits_B, cams_Bhw = reference(model, inputs_BHW)
    clear_B = np.abs(logits_B - threshold_logit) > margin
    if clear_B.sum() < _FEWEST_CASES:
        raise ConfigurationError(
            "Nearly every golden case lies at the threshold: this model decides nothing."
        )
    content = io.BytesIO()
    np.savez_compressed(content, inputs_BHW=inputs_BHW[clear_B], cams_Bhw=cams_Bhw[clear_B])
    write_whole(path, content.getbuffer())
    return tuple(
        GoldenCase(name=f"phantom-{seed}-opacity-{opacity}", logit=float(logit))
        for (seed, opacity), logit, clear in zip(_PHANTOMS, logits_B, clear_B, strict=True)
        if clear
    )


@cache
def _phantoms() -> NDArray[np.uint8]:
    films = (radiograph(seed, rows=1250, columns=1024, opacity=opacity) for seed, opacity in _PHANTOMS)
    return np.stack([preprocess.to_input(film) for film in films])


def _logit_of(probability: float) -> float:
    return float(np.log(probability) - np.log1p(-probability))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""The parity gate: an engine shows that it is the model, before it serves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError
from worker import preprocess
from worker.bundle import Bundle, GoldenCase
from worker.engines import Engine


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an engine is from the reference (torch, float32) at worst, over all cases and batch sizes."""

    logit: float
    """Largest absolute difference of a logit."""
    cam: float
    """Largest absolute difference of a map, as a share of the reference map's range."""


def replay_golden(bundle: Bundle, engine: Engine) -> float:
    """Run every golden case through the engine, at each batch size that it was built for.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        ConfigurationError: a case is out of tolerance or its decision flips; the sentence names it.
    """
    return measure_parity(bundle, engine).logit


def measure_parity(bundle: Bundle, engine: Engine) -> Parity:
    """The same, with all that was measured.

    Raises:
        ConfigurationError: as `replay_golden`.
    """
    inputs_BHW, cams_Bhw = bundle.golden()
    cases = bundle.manifest.golden.cases
    pixels_B1HW = preprocess.to_batch(list(inputs_BHW))
    worst = Parity(logit=0.0, cam=0.0)
    for batch in engine.batches:
        # Every case goes through the kernels of every batch size: the last batch is filled from the first.
        for start in range(0, len(cases), batch):
            places = [(start + place) % len(cases) for place in range(batch)]
            found = engine.infer(pixels_B1HW[places])
            for place, logit, cam_hw in zip(places, found.logits_B, found.cams_Bhw, strict=True):
                difference = _difference(cases[place], float(logit), cam_hw, cams_Bhw[place])
                flips = _decides(bundle, float(logit)) != _decides(bundle, cases[place].logit)
                if flips or not _within(bundle, difference):
                    raise _refusal(engine, cases[place], batch, difference, flips=flips)
                worst = Parity(logit=max(worst.logit, difference.logit), cam=max(worst.cam, difference.cam))
    return worst


def _difference(
    case: GoldenCase, logit: float, cam_hw: NDArray[np.float32], reference_hw: NDArray[np.float32]
) -> Parity:
    scale = float(np.ptp(reference_hw)) or 1.0
    return Parity(logit=abs(logit - case.logit), cam=float(np.abs(cam_hw - reference_hw).max()) / scale)


def _decides(bundle: Bundle, logit: float) -> bool:
    return bundle.probability(logit) >= bundle.manifest.operating_point.probability


def _within(bundle: Bundle, difference: Parity) -> bool:
    golden = bundle.manifest.golden
    # A NaN is within nothing.
    return difference.logit <= golden.logit_tolerance and difference.cam <= golden.cam_tolerance


def _refusal(
    engine: Engine, case: GoldenCase, batch: int, difference: Parity, *, flips: bool
) -> ConfigurationError:
    where = f"{case.name} in a batch of {batch}" if batch > 1 else case.name
    return ConfigurationError(
        f"The engine {engine.name} ({engine.precision}) does not agree with the model on golden case "
        f"{where}: logit off by {difference.logit:.4f}, map by {difference.cam:.4f}"
        f"{', and the decision flips' if flips else ''}. It will not serve."
    )

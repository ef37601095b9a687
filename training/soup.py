"""One network out of several that were trained from the same beginning: the mean of their weights.

Wortsman et al., "Model soups", ICML 2022: networks that were fine-tuned from one set of weights lie in one
valley, so that their mean is a network too, as fast as one of them, and often better on films of another
source than any of them. Networks that began at random lie in different valleys; their mean is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import update_bn

from dicom_node.errors import ConfigurationError
from training import checkpoint, tasks
from training.bundle.provenance import RunRecord
from training.files import write_whole
from training.films import datasets
from training.films.datasets import Row
from training.networks.densenet import DenseNet121
from training.networks.importers import RANDOM
from training.train import CHECKPOINT, CONFIGURATION, pixels, require_over

_BATCH = 16


def average_runs(
    runs: Sequence[Path], rows: Sequence[Row], inputs_NHW: NDArray[np.uint8], into: Path
) -> RunRecord:
    """Write a run directory whose network is the mean of others, to be evaluated and exported like one.

    Args:
        runs: directories of finished runs.
        rows: the whole catalogue.
        inputs_NHW: recipe outputs in the order of `rows`; the running statistics of the normalisations are
            computed anew on those learnt from, because the mean of statistics is not that of the mean.
        into: the new run directory.

    Raises:
        ConfigurationError: fewer than two runs, or runs that did not begin alike or learn from the same.
    """
    if len(runs) < 2:
        raise ConfigurationError("A mean needs two runs at least.")
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigurationError("A run of the mean is named twice.")
    records = [_record(run) for run in runs]
    first = records[0]
    for run, record in zip(runs, records, strict=True):
        if record.init == RANDOM or record.init != first.init:
            raise ConfigurationError(f"The run {run} did not begin with the same weights as {runs[0]}.")
        if record.data != datasets.digest(rows) or record.settings.leave_out != first.settings.leave_out:
            raise ConfigurationError(f"The run {run} did not learn from the same films.")
    network = tasks.MultiTask(DenseNet121())
    total: dict[str, Tensor] = {}
    for run in runs:
        require_over(checkpoint.load_average(run / CHECKPOINT, network), run)
        for name, tensor in network.state_dict().items():
            total[name] = total[name] + tensor if name in total else tensor.clone()
    mean = {
        name: tensor / len(runs) if tensor.is_floating_point() else tensor // len(runs)
        for name, tensor in total.items()
    }
    network.load_state_dict(mean)
    left_out = first.settings.leave_out
    learnt_N = np.array([row.trainable and row.origin not in left_out for row in rows])
    update_bn(_batches(inputs_NHW[learnt_N], first.settings.seed), network)
    members = tuple(checkpoint.digest(run / CHECKPOINT) for run in runs)
    whole = first.model_copy(update={"mean_of": members})
    into.mkdir(parents=True, exist_ok=True)
    write_whole(into / CONFIGURATION, whole.model_dump_json(indent=2) + "\n")
    metadata = {"run": whole.model_dump(mode="json"), "epochs": first.settings.epochs}
    checkpoint.write_average(into / CHECKPOINT, network, metadata)
    return whole


def _record(run: Path) -> RunRecord:
    try:
        return RunRecord.model_validate_json((run / CONFIGURATION).read_bytes())
    except (OSError, ValueError):
        raise ConfigurationError(f"There is no run in {run}.") from None


def _batches(inputs_NHW: NDArray[np.uint8], seed: int) -> Iterator[Tensor]:
    """Films as they are served, mixed, in whole batches only: a batch of one has no deviation."""
    order = np.random.default_rng(seed).permutation(len(inputs_NHW))
    batch = min(_BATCH, len(order))
    for start in range(0, len(order) - batch + 1, batch):
        yield pixels(inputs_NHW[order[start : start + batch]])

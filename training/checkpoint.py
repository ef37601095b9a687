"""Checkpoints: everything that a run needs to go on, in one safetensors file without pickles."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from dicom_node.errors import ConfigurationError
from training.files import write_whole

_MODEL, _AVERAGE, _OPTIMISER = "model.", "average.", "optimiser."


def write_checkpoint(
    path: Path, model: nn.Module, average: nn.Module, optimiser: Optimizer, metadata: dict[str, object]
) -> None:
    """Write atomically: a run that dies while it writes keeps the checkpoint before."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{_AVERAGE}{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}{index}.{name}": tensor for name, tensor in state.items()}
    _write(path, tensors, metadata)


def write_average(path: Path, average: nn.Module, metadata: dict[str, object]) -> None:
    """Write weights alone, for `load_average`; atomically."""
    _write(path, {f"{_AVERAGE}{name}": tensor for name, tensor in average.state_dict().items()}, metadata)


def write_features(path: Path, model: nn.Module) -> None:
    """Write a network's `features` alone, to begin others with: filters in half precision, the rest whole.

    Half of a checkpoint's average, and small enough to be passed on; normalisations keep their range.
    """
    features = {name: t for name, t in model.state_dict().items() if name.startswith("features.")}
    _write(path, {name: t.half() if t.dim() > 1 else t for name, t in features.items()}, {})


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, object]) -> None:
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {"run": json.dumps(metadata)}
    )
    write_whole(path, content)


def read_checkpoint(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The metadata and all tensors of a checkpoint.

    Raises:
        ConfigurationError: the file is missing or is no checkpoint of ours.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["run"])
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise ConfigurationError(f"The checkpoint {path} is missing or damaged.") from None


def restore(tensors: dict[str, Tensor], model: nn.Module, average: nn.Module, optimiser: Optimizer) -> None:
    """Put a run back where it was.

    Raises:
        ConfigurationError: the tensors are of another network.
    """
    # By the optimiser's own count: of a network that is partly frozen it holds a part.
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    kept_model, kept_average = _part(tensors, _MODEL), _part(tensors, _AVERAGE)
    if any(_shapes(kept) != _shapes(model.state_dict()) for kept in (kept_model, kept_average)):
        raise ConfigurationError("The checkpoint is of another network: choose a new directory.")
    model.load_state_dict(kept_model)
    average.load_state_dict(kept_average)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, _OPTIMISER).items():
        index, key = name.split(".")
        kept = state.setdefault(int(index), {})
        # A fused optimiser walks memory: its state has to lie there as the parameter does.
        like = parameters[int(index)]
        kept[key] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def require_number(loss: float, epoch: int) -> None:
    """Refuse to go on, and to keep what was learnt, when the loss is no number any more.

    Raises:
        ConfigurationError: it is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise ConfigurationError(
            f"The loss of epoch {epoch} is no number any more: begin anew with a smaller learning_rate."
        )


def load_average(path: Path, model: nn.Module) -> dict[str, object]:
    """Load the averaged weights, which are what is evaluated and exported.

    Returns:
        The checkpoint's metadata.

    Raises:
        ConfigurationError: the file is no checkpoint of this network.
    """
    metadata, tensors = read_checkpoint(path)
    try:
        model.load_state_dict(_part(tensors, _AVERAGE))
    except RuntimeError:
        raise ConfigurationError(f"The checkpoint {path} belongs to another network.") from None
    return metadata


def average_of(model: nn.Module) -> nn.Module:
    """A copy that is evaluated only and follows the model by `follow`."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average a step towards the model, running statistics of the normalisations included."""
    for kept, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)


def digest(path: Path) -> str:
    """SHA-256 of a checkpoint, which binds an evaluation to it."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise ConfigurationError(f"The checkpoint {path} cannot be read.") from None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}

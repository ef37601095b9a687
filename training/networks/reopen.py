"""A network as torch has it, out of a bundle: its weights stand in `model.onnx` by their names.

The exporter folds a normalisation into the convolution before it where nothing stands between the two, and
leaves a bias. Here the normalisation behind that convolution adds the bias and does nothing else.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from dicom_node.errors import ConfigurationError
from training.bundle.export import reference
from training.networks.densenet import DenseNet121
from worker.bundle import Bundle

_HEAD = "view"
"""The exporter's name for the head's weights, which the map takes as an image of one pixel."""
_FOLDED = {"norm0": "conv0", "norm2": "conv1"}
"""Which convolution took in which normalisation."""


def reopen(bundle: Bundle) -> DenseNet121:
    """The network of a bundle in float32, held against the bundle's golden cases.

    Raises:
        ConfigurationError: the model file is no DenseNet-121 that `export` wrote.
    """
    refusal = f"{bundle.model_path} is no DenseNet-121 that `export` wrote."
    model = DenseNet121().eval()
    try:
        graph = onnx.load(bundle.model_path).graph
        there = {item.name: torch.tensor(numpy_helper.to_array(item)).float() for item in graph.initializer}
        model.load_state_dict(_state(model, there))
    except (OSError, DecodeError, KeyError, RuntimeError, ValueError):
        raise ConfigurationError(refusal) from None
    inputs_BHW, _ = bundle.golden()
    golden = bundle.manifest.golden
    difference_B = np.abs(reference(model, inputs_BHW)[0] - [case.logit for case in golden.cases])
    if not difference_B.max() <= golden.logit_tolerance:
        raise ConfigurationError(refusal)
    return model


def _state(model: nn.Module, there: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {name: there.get(name, tensor) for name, tensor in model.state_dict().items()}
    state["head.weight"] = there[_HEAD].reshape(1, -1)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.weight" not in there:
            before, _, last = name.rpartition(".")
            bias = there[f"{before}.{_FOLDED[last]}.weight_bias"]
            one = torch.ones_like(bias)
            state |= {
                f"{name}.weight": one,
                f"{name}.bias": bias,
                f"{name}.running_mean": 0 * one,
                f"{name}.running_var": one - module.eps,
            }
    # Whatever else the file lacks would stay as it was drawn.
    if any(state[name] is tensor for name, tensor in model.state_dict().items() if "num_batches" not in name):
        raise KeyError
    return state

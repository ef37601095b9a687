"""A bundle's `model.onnx` as a torch function: a small interpreter of the operators that are in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from dicom_node.errors import ConfigurationError

_Attributes = dict[str, Any]


def _padding(attributes: _Attributes) -> list[int]:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ConfigurationError(
            "The torch engine pads both sides alike and this model does not: set another worker.engine."
        )
    return [top, left]


def _pooling(attributes: _Attributes) -> _Attributes:
    return {
        "kernel_size": attributes["kernel_shape"],
        "stride": attributes.get("strides", (1, 1)),
        "padding": _padding(attributes),
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
    }


def _max_pool(attributes: _Attributes, pixels: Tensor) -> Tensor:
    dilation = attributes.get("dilations", (1, 1))
    return functional.max_pool2d(pixels, dilation=dilation, **_pooling(attributes))


def _average_pool(attributes: _Attributes, pixels: Tensor) -> Tensor:
    padded_too = bool(attributes.get("count_include_pad", 0))
    return functional.avg_pool2d(pixels, count_include_pad=padded_too, **_pooling(attributes))


def _convolve(attributes: _Attributes, pixels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.conv2d(
        pixels,
        weight,
        bias,
        stride=attributes.get("strides", (1, 1)),
        padding=_padding(attributes),
        dilation=attributes.get("dilations", (1, 1)),
        groups=attributes.get("group", 1),
    )


def _normalise(attributes: _Attributes, pixels: Tensor, *statistics: Tensor) -> Tensor:
    weight, bias, mean, variance = statistics
    return functional.batch_norm(pixels, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(attributes: _Attributes, values: Tensor, axes: list[int]) -> Tensor:
        return function(values, dim=axes, keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _expand(_: _Attributes, values: Tensor, shape: list[int]) -> Tensor:
    # ONNX: what is one on either side takes the other's extent.
    return values.expand(torch.broadcast_shapes(values.shape, tuple(shape)))  # type: ignore[no-untyped-call]


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _normalise,
    "Concat": lambda attributes, *parts: torch.cat(parts, dim=attributes["axis"]),
    "Conv": _convolve,
    "Div": lambda _, a, b: a / b,
    "Expand": _expand,
    "MaxPool": _max_pool,
    "Mul": lambda _, a, b: a * b,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": lambda _, values: functional.relu(values),
    "Sub": lambda _, a, b: a - b,
}


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One node."""

    function: Callable[..., Tensor]
    attributes: _Attributes
    inputs: tuple[str, ...]
    output: str
    done_with: tuple[str, ...]
    """Values that no later step takes: their memory is free after this one."""


class Network:
    """`network(pixels_B1HW)` gives logits `(B,)` and maps `(B, h, w)`, all float32 on its device."""

    def __init__(self, model: bytes, device: torch.device, dtype: torch.dtype) -> None:
        """Read the model.

        Args:
            model: content of `model.onnx`.
            device: where the weights go.
            dtype: in which to compute what the model computes in half.

        Raises:
            ConfigurationError: it does not parse, or has an operator that is not known here.
        """
        try:
            graph = onnx.load_from_string(model).graph
        except DecodeError:
            raise ConfigurationError("The model is no ONNX file: export the bundle again.") from None
        self._input = graph.input[0].name
        self._outputs = [output.name for output in graph.output]
        if sorted(self._outputs) != ["cam", "logit"]:
            raise ConfigurationError("The model has not the outputs `logit` and `cam`: export it again.")
        self._constants = {each.name: _constant(each, device, dtype) for each in graph.initializer}
        self._steps = _steps(graph.node, {*self._constants, *self._outputs}, dtype)

    def __call__(self, pixels_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Run it; the caller says under which mode (`torch.inference_mode`) and on which stream."""
        values: dict[str, Any] = {**self._constants, self._input: pixels_B1HW}
        for step in self._steps:
            values[step.output] = step.function(step.attributes, *(values[name] for name in step.inputs))
            for name in step.done_with:
                del values[name]
        return values["logit"], values["cam"]


def _constant(stored: onnx.TensorProto, device: torch.device, dtype: torch.dtype) -> Tensor | list[int]:
    array = numpy_helper.to_array(stored)
    if array.dtype == np.int64:
        # Axes and shapes: read back from a GPU they would stop it, and break the capture of a graph.
        return [int(value) for value in array.ravel()]
    tensor = torch.from_numpy(array.copy()).to(device)
    tensor = tensor.to(dtype) if stored.data_type == TensorProto.FLOAT16 else tensor
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _steps(nodes: Sequence[onnx.NodeProto], kept: set[str], dtype: torch.dtype) -> list[_Step]:
    waiting = Counter(name for node in nodes for name in node.input)
    steps = []
    for node in nodes:
        waiting.subtract(node.input)
        steps.append(
            _Step(
                function=_function(node, dtype),
                attributes={each.name: helper.get_attribute_value(each) for each in node.attribute},
                inputs=tuple(node.input),
                output=node.output[0],
                done_with=tuple({name for name in node.input if waiting[name] == 0 and name not in kept}),
            )
        )
    return steps


def _function(node: onnx.NodeProto, dtype: torch.dtype) -> Callable[..., Tensor]:
    if node.op_type == "Cast":
        (to,) = (each.i for each in node.attribute if each.name == "to")
        if to == TensorProto.FLOAT16:
            return lambda _, values: values.to(dtype, memory_format=torch.channels_last)
        if to == TensorProto.FLOAT:
            return lambda _, values: values.float()
    elif node.op_type in _OPERATORS and len(node.output) == 1:
        return _OPERATORS[node.op_type]
    raise ConfigurationError(
        f"The torch engine does not know the operator {node.op_type} of this model: set another "
        "worker.engine."
    )

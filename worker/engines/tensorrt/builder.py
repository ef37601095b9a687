"""ONNX to a strongly typed network to a plan: an engine for one card, with a profile for each batch size.

The types stand in the model (`features` in half, input and outputs in float32), so that TensorRT 10 and
11 make the same of it: 11 knows no other networks and ignores the flag that 10 needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dicom_node.errors import ConfigurationError
from worker.engines import DeviceUnavailable
from worker.engines.tensorrt.library import Library

INPUT = "pixels"
OUTPUTS = ("logit", "cam")
PRECISION = "f16"
FLAGS = ("STRONGLY_TYPED",)
"""Flags of the network; they are part of a plan's key."""
CONFIG_FLAGS = ("REQUIRE_USER_ALLOCATION",)
"""Flags of the build, where the library has them: TensorRT-RTX has only such plans captured in a graph."""


def build_plan(library: Library, onnx: bytes, *, buckets: Sequence[int], size: int) -> bytes:
    """Build the plan of a model for the card of this process; minutes on a GPU.

    Args:
        library: what builds.
        onnx: the content of `model.onnx`.
        buckets: batch sizes; each becomes a profile of its own, so that each gets kernels of its own.
        size: side of the network's input in pixels.

    Raises:
        ConfigurationError: the model does not parse, or is not one of ours.
        DeviceUnavailable: TensorRT cannot build it on this machine.
    """
    trt = library.trt
    builder = library.start("Builder")
    network = parse(library, builder, onnx, size=size)
    config = builder.create_builder_config()
    for name in CONFIG_FLAGS:
        if (flag := getattr(trt.BuilderFlag, name, None)) is not None:
            config.set_flag(flag)
    for bucket in buckets:
        shape = (bucket, 1, size, size)
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise ConfigurationError(f"TensorRT takes no profile of {shape}: set worker.engine to another.")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = library.logger.last_error or "it gave no reason"
        raise DeviceUnavailable(
            f"{library.name} {library.version} cannot build this model here ({why}): free GPU memory, lower "
            "worker.max_batch, or set another worker.engine."
        )
    return bytes(plan)


def parse(library: Library, builder: Any, onnx: bytes, *, size: int) -> Any:
    """The network of a model, float32 at its ends.

    Raises:
        ConfigurationError: as `build_plan`; the sentence holds TensorRT's first complaint.
    """
    trt = library.trt
    flags = 0
    for name in FLAGS:
        # A later version may drop what it has ignored since 11.
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        flags |= 0 if flag is None else 1 << int(flag)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(onnx):
        raise ConfigurationError(
            f"{library.name} {library.version} cannot parse the model: {_complaint(parser)}. "
            "Export the bundle again, or set another worker.engine."
        )
    _check_ends(trt, network, size)
    return network


def _complaint(parser: Any) -> str:
    if not parser.num_errors:
        return "it gave no reason"
    error = parser.get_error(0)
    where = f" at node {error.node()}, {error.node_operator()}" if error.node() >= 0 else ""
    return " ".join(error.desc().split()).rstrip(".") + where


def _check_ends(trt: Any, network: Any, size: int) -> None:
    ends = [network.get_input(index) for index in range(network.num_inputs)]
    ends += [network.get_output(index) for index in range(network.num_outputs)]
    if [end.name for end in ends] != [INPUT, *OUTPUTS]:
        raise ConfigurationError(
            f"The model has not the input `{INPUT}` and the outputs `{'` and `'.join(OUTPUTS)}`: "
            "export the bundle again."
        )
    if any(end.dtype != trt.float32 for end in ends) or tuple(ends[0].shape) != (-1, 1, size, size):
        raise ConfigurationError(
            f"The model does not take and give float32 for any number of {size} x {size} films: "
            "export the bundle again."
        )

"""What tests of engines are built of: small models, and the facts of cards that are not here."""

from __future__ import annotations

from onnx import TensorProto, helper

from worker.engines.tensorrt.plan_cache import PlanKey

SIZE = 8
H100 = {"compute_capability": "9.0", "card": "NVIDIA H100 80GB HBM3", "driver": "580.65.06"}


def plan_key(**changes: object) -> PlanKey:
    """The key of a plan for an H100, with changes."""
    parts = {
        "library": "tensorrt",
        "version": "10.13.3",
        "onnx_sha256": "0" * 64,
        "precision": "f16",
        "buckets": (1, 2),
        "size": SIZE,
        "flags": ("STRONGLY_TYPED",),
        **H100,
    }
    return PlanKey(**(parts | changes))  # type: ignore[arg-type]


def small_model(
    *,
    elements: int = TensorProto.FLOAT,
    outputs: tuple[str, str] = ("logit", "cam"),
    operator: str = "Relu",
) -> bytes:
    """A model of our shape with half precision within: rectified film and its mean."""
    shape = ["batch", 1, SIZE, SIZE]
    logit, cam = outputs
    nodes = [
        helper.make_node("Cast", ["pixels"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node(operator, ["half"], ["feature"]),
        helper.make_node("Cast", ["feature"], ["whole"], to=elements),
        helper.make_node("Squeeze", ["whole", "channel"], [cam]),
        helper.make_node("ReduceMean", [cam, "sides"], [logit], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(logit, elements, ["batch"]),
            helper.make_tensor_value_info(cam, elements, ["batch", SIZE, SIZE]),
        ],
        [
            helper.make_tensor("channel", TensorProto.INT64, [1], [1]),
            helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())

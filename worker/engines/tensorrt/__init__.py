"""The NVIDIA engine: ONNX to a plan for one card, kept in a cache, run as one CUDA graph a batch size.

All of it is written against the module that it is given, `tensorrt` or `tensorrt_rtx`, which share their
builder, parser and runtime. The latter builds without a GPU, and so the tests do.
"""

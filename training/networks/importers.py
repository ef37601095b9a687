"""Weights to begin with, from other people's files and from our own: all of them fit, or none is taken.

The network's `features` are replaced, its head only by a bundle's. A file is read as tensors only: a pickled
object could run its author's code, so it is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle  # for the type of an error
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from dicom_node.errors import ConfigurationError
from training.networks.densenet import INPUT_DEVIATION, INPUT_MEAN, DenseNet121
from training.networks.reopen import reopen
from worker.bundle import Bundle

RANDOM, BUNDLE = "random", "bundle"
_CONV, _NORM = "features.conv0.weight", "features.norm0"
_COUNTER = ".num_batches_tracked"
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_EPSILON = 1e-5  # of every batch normalisation of DenseNet
# What torch.load raises on cut and altered files, found by cutting and altering some thousands.
_DAMAGED = (
    pickle.UnpicklingError,
    SafetensorError,
    struct.error,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    OSError,
    TypeError,
    AttributeError,
    AssertionError,
)
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """How a publisher's file names its tensors, and what its network was shown."""

    names: Callable[[Iterable[str]], dict[str, str]]
    """For each key of a file its name in `DenseNet121`; a key left out is passed over."""
    others: dict[str, Shape]
    """Tensors besides the features, renamed: the head that is not taken."""
    optional: frozenset[str] = frozenset()
    channels: tuple[tuple[float, float], ...] = ()
    """(gain, offset) of each input channel: it is `gain * grey + offset`, grey in [0, 1]; none: as ours."""
    unit_variance: bool = False
    """Scale each filter of the first convolution to unit variance: inputs up to 1024 make variances that
    half precision cannot hold."""


def load_init(model: DenseNet121, init: str) -> str:
    """Begin with the weights that `init` names; the head stays as it is.

    The scale of the input that the weights were trained with goes into the first convolution and the
    running mean behind it, so that our network gives the features of the original on the same film.
    For `xrv` that holds everywhere. For `chexnet` it holds but for the border: zero padding is the mean of
    ImageNet there and mid-grey here, which the outermost ring of the first convolution sees, and whatever
    later layers make of that ring. For `pretrained` nothing changes.

    Args:
        model: changed only when every tensor fits.
        init: `random`; `chexnet:PATH`, the `model.pth.tar` of arnoweng/CheXNet; `xrv:PATH`, the
            `state_dict` of a TorchXRayVision `densenet121-res224`; `pretrained:PATH`, our own weights, of
            a checkpoint its average; `bundle:DIRECTORY`, all of a bundle's network, head included. A path
            that ends in `.safetensors` is read as such.

    Returns:
        What was loaded: `random`, or kind, file name and SHA-256.

    Raises:
        ConfigurationError: `init` is none of these, or the file is missing, damaged, a pickled object or
            of another network; the sentence names the file and the first key that does not fit.
    """
    if init == RANDOM:
        return init
    kind, _, name = init.partition(":")
    if kind == BUNDLE and name:
        bundle = Bundle(Path(name))
        model.load_state_dict(reopen(bundle).state_dict())
        return (
            f"{BUNDLE}:{bundle.manifest.name} {bundle.manifest.version} sha256:{bundle.manifest.model.sha256}"
        )
    if kind not in _SOURCES or not name:
        kinds = ", ".join(f"`{kind}:PATH`" for kind in (*_SOURCES, BUNDLE))
        raise ConfigurationError(f"`{init}` names no weights to begin with: say `{RANDOM}`, {kinds}.")
    path, source = Path(name), _SOURCES[kind]
    try:
        content = path.read_bytes()
    except OSError:
        raise ConfigurationError(f"The weights {path} cannot be read.") from None
    features = _fitting(path, _tensors(path, content), source, model.state_dict())
    if source.channels:
        _fold(features, source)
    model.load_state_dict(features, strict=False)  # what is missing are the head and the counters
    return f"{kind}:{path.name} sha256:{hashlib.sha256(content).hexdigest()}"


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors: object = load_safetensors(content)
        else:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        if "Unsupported global" not in str(error):
            raise ConfigurationError(f"The weights {path} are damaged.") from None
        raise ConfigurationError(
            f"The weights {path} hold a pickled Python object, which is never opened here: where you trust "
            "it, open it with its publisher's program and save its `state_dict()` by itself."
        ) from None
    if isinstance(tensors, dict):
        tensors = tensors.get("state_dict", tensors)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ConfigurationError(f"The weights {path} are no table of tensors.")
    return {str(name): tensor for name, tensor in tensors.items()}


def _fitting(
    path: Path, tensors: dict[str, Tensor], source: _Source, ours: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The features by our names, once every tensor of the file is known, whole and of its shape."""
    shapes = {name: tuple(t.shape) for name, t in ours.items() if name.startswith("features.")}
    filters, channels, *kernel = shapes[_CONV]
    shapes[_CONV] = (filters, len(source.channels) or channels, *kernel)
    shapes |= source.others
    found: dict[str, Tensor] = {}
    for key, name in source.names(tensors).items():
        tensor = tensors[key]
        if name not in shapes or name in found:
            raise ConfigurationError(f"The weights {path} do not fit: `{key}` has no place here.")
        if tuple(tensor.shape) != shapes[name]:
            raise ConfigurationError(
                f"The weights {path} do not fit: `{key}` is {tuple(tensor.shape)}, not {shapes[name]}."
            )
        if name.startswith("features.") and not bool(torch.isfinite(tensor).all()):
            raise ConfigurationError(f"The weights {path} do not fit: `{key}` is not finite.")
        found[name] = tensor
    for name in shapes:
        # PyTorch of 2017 counted no batches, and nothing here depends on the count.
        if name not in found and name not in source.optional and not name.endswith(_COUNTER):
            raise ConfigurationError(f"The weights {path} do not fit: `{name}` is missing.")
    return {name: tensor for name, tensor in found.items() if name in ours}


def _fold(features: dict[str, Tensor], source: _Source) -> None:
    """Let the first convolution take our input, `(grey - 0.5) * sqrt(12)` on three equal channels."""
    weight_OCkk = features[_CONV].double()
    mean_O, variance_O = (features[f"{_NORM}.running_{of}"].double() for of in ("mean", "var"))
    gains_C, offsets_C = torch.tensor(source.channels, dtype=torch.float64).T
    mean_O = mean_O - weight_OCkk.sum(dim=(2, 3)) @ (gains_C * INPUT_MEAN + offsets_C)
    weight_OCkk = weight_OCkk * (gains_C * INPUT_DEVIATION)[:, None, None]
    if len(source.channels) == 1:
        weight_OCkk = weight_OCkk.expand(-1, 3, -1, -1) / 3
    if source.unit_variance:
        deviation_O = (variance_O + _EPSILON).sqrt()
        weight_OCkk = weight_OCkk / deviation_O[:, None, None, None]
        mean_O, variance_O = mean_O / deviation_O, torch.full_like(variance_O, 1 - _EPSILON)
    features[_CONV] = weight_OCkk
    features[f"{_NORM}.running_mean"], features[f"{_NORM}.running_var"] = mean_O, variance_O


def _published(keys: Iterable[str]) -> dict[str, str]:
    """Without the wrappers, and `norm.1` as `norm1`: PyTorch of 2017 wrote it so."""
    bare = {key: key.removeprefix("module.").removeprefix("densenet121.") for key in keys}
    return {
        key: _OLD_NAME.sub(r"\1\2.", name).replace("classifier.0.", "classifier.")
        for key, name in bare.items()
    }


def _own(keys: Iterable[str]) -> dict[str, str]:
    """Of a checkpoint the average, which is what is evaluated; no head, whatever it is for."""
    keys = tuple(keys)
    parts = ("average.network.", "average.", "model.", "")
    part = next(part for part in parts if any(key.startswith(f"{part}features.") for key in keys) or not part)
    names = {key: key.removeprefix(part) for key in keys if key.startswith(part)}
    return {key: name for key, name in names.items() if not name.startswith("head.")}


def _head(classes: int) -> dict[str, Shape]:
    return {"classifier.weight": (classes, 1024), "classifier.bias": (classes,)}


# Mean and deviation of ImageNet, as torchvision's transforms and so CheXNet have them.
_IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
_SOURCES = {
    "chexnet": _Source(
        names=_published,
        others=_head(14),
        channels=tuple((1 / deviation, -mean / deviation) for mean, deviation in _IMAGENET),
    ),
    "xrv": _Source(  # the published models carry their thresholds
        names=_published,
        others=_head(18) | {"op_threshs": (18,)},
        optional=frozenset({"op_threshs"}),
        channels=((2048.0, -1024.0),),
        unit_variance=True,
    ),
    "pretrained": _Source(names=_own, others={}),
}

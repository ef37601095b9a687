"""Other people's weights: every tensor fits and means the same, or nothing is taken."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import densenet121

from dicom_node.errors import ConfigurationError
from training import checkpoint
from training.bundle.export import reference
from training.networks.densenet import DenseNet121
from training.networks.importers import load_init
from worker.bundle import Bundle
from worker.settings import DEFAULT_BUNDLE

pytestmark = pytest.mark.training

MEAN_C, DEVIATION_C = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
OP_THRESHS = torch.full((18,), 0.5)


def published(classes: int, channels: int, largest: float) -> nn.Module:
    """A DenseNet-121 that has seen something: no statistic and no scale is what it was at the start."""
    torch.manual_seed(5)
    network = densenet121(weights=None, num_classes=classes)
    if channels != 3:
        network.features.conv0 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0.1, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    network.features.norm0.running_mean *= largest
    network.features.norm0.running_var *= largest**2
    return network.eval()


def chexnet_file(network: nn.Module) -> dict[str, object]:
    """What `model.pth.tar` holds: names of PyTorch 0.3 behind DataParallel, and no count of batches."""
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        old = re.sub(r"(denselayer\d+\.)(norm|conv)(\d)", r"\1\2.\3", name)
        state["module.densenet121." + old.replace("classifier.", "classifier.0.")] = tensor.clone()
    return {"epoch": 9, "best_loss": 0.15, "state_dict": state}


def xrv_file(network: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of TorchXRayVision's `DenseNet`, with its thresholds."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()} | {
        "op_threshs": OP_THRESHS
    }


@pytest.fixture(scope="module")
def chexnet() -> nn.Module:
    return published(14, 3, 1.0)


@pytest.fixture(scope="module")
def xrv() -> nn.Module:
    return published(18, 1, 1024.0)


def save(content: object, path: Path) -> Path:
    # The form that PyTorch wrote in 2017, before zip files.
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def film_of(side: int) -> Tensor:
    torch.manual_seed(8)
    coarse_11hw = torch.rand(1, 1, side // 8, side // 8)
    return nn.functional.interpolate(coarse_11hw, (side, side), mode="bilinear")


def ours(model: DenseNet121, film_11HW: Tensor, features: nn.Module) -> Tensor:
    return features(((film_11HW - 0.5) * 12**0.5).expand(-1, 3, -1, -1))


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@torch.inference_mode()
def test_chexnet_gives_its_own_features_but_for_the_border(chexnet, tmp_path):
    """Behind the first convolution everything but the outermost ring is what CheXNet computes."""
    model = DenseNet121().eval()
    load_init(model, f"chexnet:{save(chexnet_file(chexnet), tmp_path / 'model.pth.tar')}")
    film_11HW = film_of(128)
    normal = (film_11HW.expand(-1, 3, -1, -1) - MEAN_C[:, None, None]) / DEVIATION_C[:, None, None]
    expected = chexnet.features[:2](normal)
    found = ours(model, film_11HW, model.features[:2])
    assert_same(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])
    assert not torch.allclose(found[..., 0, :], expected[..., 0, :], atol=1e-2)


@torch.inference_mode()
def test_the_border_is_all_that_chexnet_and_we_see_otherwise(chexnet, tmp_path):
    """Where CheXNet's film is padded with mid-grey, as ours is, even the last features are the same."""
    model = DenseNet121().eval()
    load_init(model, f"chexnet:{save(chexnet_file(chexnet), tmp_path / 'model.pth.tar')}")
    film_11HW = film_of(96)
    padded = nn.functional.pad(film_11HW, (3, 3, 3, 3), value=0.5).expand(-1, 3, -1, -1)
    original = copy.deepcopy(chexnet.features)
    original.conv0.padding = (0, 0)
    expected = original((padded - MEAN_C[:, None, None]) / DEVIATION_C[:, None, None])
    assert_same(ours(model, film_11HW, model.features), expected)


@torch.inference_mode()
def test_xrv_gives_its_own_features_to_the_border(xrv, tmp_path):
    """On greys from -1024 to 1024 the original's last features are ours: its padding is mid-grey too."""
    model = DenseNet121().eval()
    load_init(model, f"xrv:{save(xrv_file(xrv), tmp_path / 'xrv.pt')}")
    film_11HW = film_of(96)
    assert_same(ours(model, film_11HW, model.features), xrv.features((2 * film_11HW - 1) * 1024))


@torch.inference_mode()
def test_xrv_can_be_served_in_half_precision(xrv, tmp_path):
    """Variances of greys up to 1024 are scaled to what half precision holds."""
    model = DenseNet121()
    load_init(model, f"xrv:{save(xrv_file(xrv), tmp_path / 'xrv.pt')}")
    assert xrv.features.norm0.running_var.half().isinf().any()
    for name, tensor in model.features.state_dict().items():
        assert tensor.half().isfinite().all(), name


def test_the_files_hold_as_many_tensors_as_published(chexnet, xrv):
    """606 tensors without counts of batches and 14 classes; 728 with them, 18 classes and thresholds."""
    state = chexnet_file(chexnet)["state_dict"]
    assert len(state) == 606
    assert state["module.densenet121.features.denseblock4.denselayer16.conv.2.weight"].shape == (
        32,
        128,
        3,
        3,
    )
    assert state["module.densenet121.classifier.0.weight"].shape == (14, 1024)
    assert len(xrv_file(xrv)) == 728


@pytest.mark.parametrize("kind", ["chexnet", "xrv", "pretrained"])
def test_the_head_stays(kind, chexnet, xrv, tmp_path):
    """What is loaded is named with its digest, and the head is what it was."""
    model = DenseNet121()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "weights"
    save({"chexnet": chexnet_file(chexnet), "xrv": xrv_file(xrv)}.get(kind, published_by_us()), path)
    said = load_init(model, f"{kind}:{path}")
    assert said == f"{kind}:weights sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "features.norm5.weight" in changed
    assert not {name for name in changed if name.startswith("head.")}


def published_by_us() -> dict[str, Tensor]:
    features = published(1, 3, 1.0).features.state_dict()
    return {f"features.{name}": tensor for name, tensor in features.items()} | {
        "head.weight": torch.zeros(14, 1024)
    }


def test_our_own_weights_are_taken_as_they_are(tmp_path):
    """A safetensors file of a network with another head gives its features to the bit."""
    state = published_by_us()
    safetensors.torch.save_file(state, tmp_path / "own.safetensors")
    model = DenseNet121()
    load_init(model, f"pretrained:{tmp_path / 'own.safetensors'}")
    for name, tensor in model.features.state_dict().items():
        assert torch.equal(tensor, state[f"features.{name}"]), name


def test_a_checkpoint_gives_its_average(tmp_path):
    """Of a run that is not over the average is taken, as it would be evaluated."""
    learner, average = DenseNet121(), DenseNet121()
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write_checkpoint(path, learner, average, torch.optim.SGD(learner.parameters()), {})
    model = DenseNet121()
    load_init(model, f"pretrained:{path}")
    assert torch.equal(model.features.conv0.weight, average.features.conv0.weight)


def test_random_is_left_alone():
    """Without weights nothing is changed."""
    model = DenseNet121()
    before = model.features.conv0.weight.clone()
    assert load_init(model, "random") == "random"
    assert torch.equal(model.features.conv0.weight, before)


LAST = "features.norm5.bias"
SPOILT = {
    "missing key": (lambda s: s.pop(f"module.densenet121.{LAST}"), rf"`{LAST}` is missing"),
    "missing head": (lambda s: s.pop("module.densenet121.classifier.0.bias"), "`classifier.bias` is missing"),
    "extra key": (lambda s: s.update({"module.extra": torch.zeros(1)}), "`module.extra` has no place"),
    "twice": (lambda s: s.update({LAST: torch.zeros(1024)}), f"`{LAST}` has no place"),
    "shape": (
        lambda s: s.update({f"module.densenet121.{LAST}": torch.zeros(1023)}),
        r"`module\.densenet121\.features\.norm5\.bias` is \(1023,\), not \(1024,\)",
    ),
    "classes": (
        lambda s: s.update({"module.densenet121.classifier.0.weight": torch.zeros(15, 1024)}),
        r"is \(15, 1024\), not \(14, 1024\)",
    ),
    "not a number": (
        lambda s: s[f"module.densenet121.{LAST}"].fill_(torch.nan),
        r"norm5\.bias` is not finite",
    ),
    "no tensor": (lambda s: s.update({"note": "hello"}), "no table of tensors"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_does_not_fit_is_named_and_nothing_is_taken(case, chexnet, tmp_path):
    """A key or shape that is not CheXNet's ends with one sentence about it, and the model is as it was."""
    spoil, sentence = SPOILT[case]
    content = chexnet_file(chexnet)
    spoil(content["state_dict"])
    path = save(content, tmp_path / "model.pth.tar")
    model = DenseNet121()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigurationError, match=rf"weights {re.escape(str(path))} .*{sentence}"):
        load_init(model, f"chexnet:{path}")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_are_passed_on_are_the_features_to_half_precision(tmp_path):
    """Filters lose bits, normalisations none, the head is not in the file, and it is half as large."""
    source, model = DenseNet121(), DenseNet121()
    nn.init.constant_(source.features.norm0.running_var, 1e-9)  # nothing that half precision could hold
    path = tmp_path / "passed-on.safetensors"
    checkpoint.write_features(path, source)
    head = model.head.weight.clone()
    load_init(model, f"pretrained:{path}")
    for name, tensor in source.features.state_dict().items():
        found = model.features.state_dict()[name]
        torch.testing.assert_close(
            found, tensor.half().float() if tensor.dim() > 1 else tensor, rtol=0, atol=0
        )
    assert torch.equal(model.head.weight, head)
    assert path.stat().st_size < 16_000_000


@pytest.mark.parametrize(
    ("kind", "other"), [("xrv", "chexnet"), ("chexnet", "xrv"), ("pretrained", "chexnet")]
)
def test_another_network_is_refused(kind, other, chexnet, xrv, tmp_path):
    """Weights of one publisher are not taken for those of another."""
    path = save({"chexnet": chexnet_file(chexnet), "xrv": xrv_file(xrv)}[other], tmp_path / "weights.pt")
    with pytest.raises(ConfigurationError, match=r"weights\.pt do not fit: `"):
        load_init(DenseNet121(), f"{kind}:{path}")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "2017"])
@pytest.mark.parametrize("keep", [0, 1, 100, 4000, -1])
def test_a_cut_file_is_one_sentence(zipped, keep, tmp_path):
    """A download that broke off is damaged, wherever it broke off."""
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": {"a": torch.zeros(2000)}}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigurationError, match=r"model\.pth\.tar are damaged"):
        load_init(DenseNet121(), f"chexnet:{path}")


def test_a_cut_safetensors_file_is_one_sentence(tmp_path):
    """Our own format, cut, is damaged too."""
    path = tmp_path / "own.safetensors"
    path.write_bytes(safetensors.torch.save({"features.norm5.bias": torch.zeros(1024)})[:-1])
    with pytest.raises(ConfigurationError, match=r"own\.safetensors are damaged"):
        load_init(DenseNet121(), f"pretrained:{path}")


class Trap:
    """Opening this pickle writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "2017"])
def test_a_pickled_object_is_never_opened(zipped, tmp_path):
    """A file that would run code is refused with what to do instead, and runs none."""
    path, sprung = tmp_path / "xrv.pt", tmp_path / "sprung"
    torch.save(Trap(sprung), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigurationError, match=r"xrv\.pt hold a pickled .* save its `state_dict\(\)`"):
        load_init(DenseNet121(), f"xrv:{path}")
    assert not sprung.exists()


def test_a_pickled_network_is_refused(xrv, tmp_path):
    """TorchXRayVision publishes whole pickled networks; the sentence says how to make weights of one."""
    path = save(xrv, tmp_path / "nih-densenet121.pt")
    with pytest.raises(ConfigurationError, match=r"save its `state_dict\(\)` by itself"):
        load_init(DenseNet121(), f"xrv:{path}")


@pytest.mark.parametrize("init", ["", "chexnet", "chexnet:", "resnet:weights.pt", "Random"])
def test_an_unknown_beginning_is_refused(init):
    """Anything but the four beginnings is refused, and they are named."""
    with pytest.raises(ConfigurationError, match="say `random`, `chexnet:PATH`, `xrv:PATH`"):
        load_init(DenseNet121(), init)


def test_a_missing_file_is_one_sentence(tmp_path):
    """A path that is not there is named."""
    with pytest.raises(ConfigurationError, match=r"gone\.pt cannot be read"):
        load_init(DenseNet121(), f"chexnet:{tmp_path / 'gone.pt'}")


def test_a_bundle_begins_a_run():
    """The shipped network is taken whole, head included, and named by its digest."""
    bundle = Bundle(DEFAULT_BUNDLE)
    model = DenseNet121()
    said = load_init(model, f"bundle:{DEFAULT_BUNDLE}")
    assert said.endswith(f"sha256:{bundle.manifest.model.sha256}")
    inputs_BHW, _ = bundle.golden()
    logits_B, _ = reference(model, inputs_BHW[:1])
    assert logits_B[0] == pytest.approx(bundle.manifest.golden.cases[0].logit, abs=0.05)

"""What leaves training: a bundle that the worker opens, and a card that tells the truth about it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import openvino
import pytest
import torch

from dicom_node.errors import ConfigurationError
from training.bundle import card_sections, provenance
from training.bundle.candidates import read_candidates
from training.bundle.card import CARD, write_card
from training.bundle.catalogue import catalogue_of
from training.bundle.export import export, reference
from training.evaluation import floor
from training.evaluation.evaluate import JUDGED, Evaluation, evaluate, measured
from training.films import datasets
from training.networks.densenet import DenseNet121
from training.networks.reopen import reopen
from training.settings import TrainingSettings
from worker import preprocess
from worker.bundle import Bundle
from worker.engines.openvino import OpenVinoEngine
from worker.parity import replay_golden
from worker.settings import DEFAULT_BUNDLE, WorkerSection

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def rows(films):
    """The generated catalogue."""
    return datasets.read_rows(films)


@pytest.fixture(scope="module")
def evaluation(films, rows):
    """Scores that put positives a little higher, and the floor beside them."""
    random = np.random.default_rng(3)
    labels_N = datasets.targets(rows)
    logits_N = np.where(measured(rows), random.normal(0, 1, len(rows)) + labels_N, np.nan).astype(np.float32)
    return evaluate(rows, logits_N, floor.statistics(films, rows), "c0ffee")


@pytest.fixture(scope="module")
def model():
    """A network with random weights, its normalisations settled on noise."""
    torch.manual_seed(1)
    network = DenseNet121()
    # As if learnt: of tensors that are alike the exporter keeps one.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.9, 1.1)
            torch.nn.init.normal_(module.bias, 0, 0.02)
    with torch.no_grad():
        network.train()(torch.rand(4, 1, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def bundle(model, rows, evaluation, tmp_path_factory):
    """The exported bundle."""
    made = provenance.Provenance(
        command="python -m training bundle",
        run=provenance.RunRecord(
            settings=TrainingSettings(),
            data=datasets.digest(rows),
            positive_weight=provenance.positive_weight(rows),
            commit=provenance.commit(),
            torch=torch.__version__,
        ),
        sources=provenance.sources_of(rows),
        evaluation=evaluation,
    )
    directory = tmp_path_factory.mktemp("bundles") / "densenet121-test"
    export(
        model,
        evaluation,
        directory,
        version="0.0.1",
        training=made.model_dump(mode="json"),
        logit_tolerance=0.005,
    )
    return Bundle(directory)


@pytest.fixture(scope="module")
def engine(bundle, tmp_path_factory):
    """The worker's CPU engine on that bundle."""
    opened = OpenVinoEngine(bundle, WorkerSection(engine_cache=tmp_path_factory.mktemp("engine")))
    yield opened
    opened.close()


def test_the_worker_serves_what_was_exported(bundle, engine):
    """The CPU engine agrees with torch on every golden case, to a fraction of the tolerance."""
    assert len(bundle.manifest.golden.cases) >= 3
    assert replay_golden(bundle, engine) <= bundle.manifest.golden.logit_tolerance


def test_a_model_that_lost_its_weights_does_not_serve(bundle, engine):
    """The golden cases fail when the reference says otherwise."""
    case = bundle.manifest.golden.cases[0]
    wrong = case.model_copy(update={"logit": case.logit + 1})
    golden = bundle.manifest.golden.model_copy(update={"cases": (wrong, *bundle.manifest.golden.cases[1:])})
    altered = Bundle(bundle.directory)
    altered.manifest = bundle.manifest.model_copy(update={"golden": golden})
    with pytest.raises(ConfigurationError, match=f"{case.name}.*will not serve"):
        replay_golden(altered, engine)


def test_a_bundle_gives_its_network_back(bundle, model):
    """What is reopened from the model file gives the logits and maps of the network that was exported."""
    inputs_BHW = np.random.default_rng(0).integers(
        0, 256, (2, preprocess.SIZE, preprocess.SIZE), dtype=np.uint8
    )
    for found, expected in zip(
        reference(reopen(bundle), inputs_BHW), reference(model, inputs_BHW), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=0.02 * max(np.ptp(expected), 0.25))


def test_any_batch_gives_what_torch_gives(bundle, model):
    """Batches of one and of three agree with the reference in logit and map."""
    compiled = openvino.Core().compile_model(bundle.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs_BHW = np.random.default_rng(0).integers(
        0, 256, (3, preprocess.SIZE, preprocess.SIZE), dtype=np.uint8
    )
    logits_B, cams_Bhw = reference(model, inputs_BHW)
    for count in (1, 3):
        found = compiled(preprocess.to_batch(list(inputs_BHW[:count])))
        np.testing.assert_allclose(found["logit"], logits_B[:count], atol=0.005)
        np.testing.assert_allclose(found["cam"], cams_Bhw[:count], atol=0.02 * np.ptp(cams_Bhw))


def test_the_model_file_is_half_inside_and_float_outside(bundle):
    """Inputs and outputs are float32, weights of the features half, and no path of this machine is in it."""
    graph = onnx.load(bundle.model_path).graph
    sides = {item.name: item.type.tensor_type for item in (*graph.input, *graph.output)}
    assert set(sides) == {"pixels", "logit", "cam"}
    assert {side.elem_type for side in sides.values()} == {onnx.TensorProto.FLOAT}
    assert not sides["pixels"].shape.dim[0].HasField("dim_value")
    assert [dim.dim_value for dim in sides["cam"].shape.dim[1:]] == [preprocess.SIZE // 32] * 2
    weights = [item for item in graph.initializer if np.prod(item.dims) > 1024]
    assert {item.data_type for item in weights} == {onnx.TensorProto.FLOAT16}
    assert bundle.model_path.stat().st_size < 16_000_000
    assert b".py" not in bundle.model_path.read_bytes()


def test_the_threshold_belongs_to_this_model(bundle, evaluation):
    """The manifest binds the operating points to the digest of the model that stands beside it."""
    manifest = bundle.manifest
    assert manifest.threshold_of == manifest.model.sha256
    assert manifest.operating_point == evaluation.operating_points[0]
    assert manifest.temperature == evaluation.temperature


def test_the_card_shows_the_floor_beside_every_figure(bundle, evaluation):
    """Every set of rows stands in the card with both figures, and licences with counts."""
    card = write_card(bundle.manifest)
    for figures in evaluation.figures:
        line = next(line for line in card.splitlines() if line.startswith(f"| {figures.rows} |"))
        assert f"{figures.auroc} | {figures.floor_auroc} | {figures.above_floor} |" in line
        assert figures.above_floor.value == pytest.approx(figures.auroc.value - figures.floor_auroc.value)
        assert figures.above_floor.low <= figures.above_floor.value <= figures.above_floor.high
    assert "| generated | CC0 | 6 | 4 |" in card
    assert "CC BY-NC" not in card
    assert "not for diagnosis" in card


def test_rows_learnt_from_are_never_measured(rows, evaluation):
    """No film that was learnt from stands in a measured set, and dev and test are whole."""
    measured_N = measured(rows)
    assert not any(row.trainable for row, inside in zip(rows, measured_N, strict=True) if inside)
    films = {figures.rows: figures.films for figures in evaluation.figures}
    assert films["dev"] == films["test"] == 6


def test_a_model_that_decides_nothing_is_not_exported(model, evaluation, tmp_path):
    """With no golden case clear of the threshold there is no bundle."""
    with pytest.raises(ConfigurationError, match="decides nothing"):
        export(model, evaluation, tmp_path, version="0.0.1", training={}, logit_tolerance=1e6)


def test_an_old_evaluation_still_loads(evaluation):
    """One from before calibration was measured loads, and its card leaves those sections out."""
    old = evaluation.model_dump(
        mode="json", exclude={"calibration", "predictive_values", "views", "subgroups"}
    )
    loaded = Evaluation.model_validate(old)
    assert loaded.calibration == ()
    sections = (
        card_sections.calibration,
        card_sections.predictive_values,
        card_sections.views,
        card_sections.groups,
    )
    assert {section(loaded) for section in sections} == {""}


def test_the_card_of_the_shipped_bundle_can_be_written():
    """The manifest in the repository, older or newer, is one that this code makes a card of."""
    card = write_card(Bundle(DEFAULT_BUNDLE).manifest)
    assert "## Who must not rely on it" in card


def test_the_card_says_of_films_only_what_is_known_of_them(bundle, tmp_path):
    """The shipped model's says where its classes come from; one of other films says that it does not know."""
    shipped, other = Bundle(DEFAULT_BUNDLE).manifest, bundle.manifest
    known = catalogue_of(provenance.Provenance.model_validate(shipped.training).evaluation.data_sha256)
    assert (DEFAULT_BUNDLE / CARD).read_text() == write_card(shipped)
    card = write_card(other).replace("\n  ", "\n")
    assert card.count("Nothing is written down of these films") == 2
    for paragraph in (*known.read_first, *known.labels):
        assert paragraph in write_card(shipped).replace("\n  ", "\n")
        assert paragraph not in card
    path = tmp_path / "catalogues.toml"
    path.write_text('[[catalogue]]\ndata = "c0ffee"\nread_first = []\n')
    with pytest.raises(ConfigurationError, match="not usable at `labels`"):
        catalogue_of("c0ffee", path)


def test_the_card_shows_calibration_and_what_a_result_is_worth(bundle, evaluation):
    """Errors before and after, chance, and PPV and NPV of every point on rows that chose no point."""
    card = write_card(bundle.manifest)
    assert {found.rows for found in evaluation.calibration} == {"dev", "test", JUDGED}
    for found in evaluation.calibration:
        assert f"| {found.rows} | {found.ece_before} | {found.ece} | {found.ece_by_chance:.3f} |" in card
    rows = {value.rows for value in evaluation.predictive_values}
    assert rows == {"test", JUDGED}
    assert "| rows | point | 1% | 2% | 5% | 10% | 20% | 50% |" in card
    for point in evaluation.operating_points:
        assert f"| test | {point.name} |" in card
    assert "Maps, tested" not in card
    assert "## Tried" not in card


def test_the_card_shows_what_the_projection_gives_away(rows):
    """Where COVID films are AP and the others PA, the view alone is perfect and no pair is left."""
    learnt = [row for row in rows if row.trainable]
    held = [
        dataclasses.replace(row, view="AP" if row.positive else "PA") for row in rows if not row.trainable
    ]
    mixed = [dataclasses.replace(row, view="PA") for row in held[::2]] + held[1::2]
    random, flat_N8 = np.random.default_rng(0), np.zeros((len(rows), 8))
    for told, alone in ((held, True), (mixed, False)):
        whole = [*learnt, *told]
        logits_N = random.normal(0, 1, len(whole)).astype(np.float32)
        views = evaluate(whole, logits_N, flat_N8, "c0ffee").views
        assert bool(views) is not alone
        for found in views:
            assert found.ap_of_negative == 0
            assert found.view_auroc.value == pytest.approx((1 + found.ap_of_positive) / 2)


EXAMPLE = """
[[candidate]]
name = "plain"
what = "augmentation only"
leave_one_source_out = { hannover = 0.61, ieee8023 = 0.642 }
srcbal = 0.694
dev = 0.866
test = 0.848
pointing = 0.5
kept = false

[[candidate]]
name = "cropped"
what = "lung fields | borders cut"
leave_one_source_out = { hannover = 0.7 }
kept = true
"""


def test_what_was_tried_stands_in_the_card(tmp_path):
    """Every candidate is a line, kept or not, with a gap where nothing was measured."""
    path = tmp_path / "candidates.toml"
    path.write_text(EXAMPLE)
    told = card_sections.tried(read_candidates(path), "random")
    assert "had seen them" not in told
    assert "had seen them" in card_sections.tried(read_candidates(path), "pretrained:weights")
    lines = told.splitlines()
    assert (
        "| candidate | what | without hannover | without ieee8023 | srcbal | dev | test | pointing | kept |"
        in lines
    )
    assert "| plain | augmentation only | 0.610 | 0.642 | 0.694 | 0.866 | 0.848 | 0.500 | no |" in lines
    assert "| cropped | lung fields \\| borders cut | 0.700 |  |  |  |  |  | yes |" in lines
    assert read_candidates(tmp_path / "none.toml") == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[candidate]", "cannot be read"),
        ("candidate = 3", "to be tables"),
        ("[[candidate]]\nname = 'a'\nwhat = 'b'", "entry 1, `kept`"),
        ("[[candidate]]\nname = 'a'\nwhat = 'b'\nkept = true\nauroc = 1.0", "entry 1, `auroc`"),
    ],
)
def test_a_log_that_cannot_be_used_is_one_sentence(tmp_path, text, sentence):
    """The sentence names the file, the entry and the key."""
    path = tmp_path / "candidates.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence):
        read_candidates(path)

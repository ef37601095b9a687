"""The page on the report's systems is made from runs that were really trained, as far as they are done."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lxml import etree
from PIL import Image

from dicom_node.errors import ConfigurationError
from training import checkpoint
from training.device import best_device
from training.films import datasets
from training.report import looks, networks, tables
from training.report.classification import FLOOR, FLOOR_APART, SETS, Measurement
from training.report.finished import finished_runs
from training.report.page import Pictures, write_report
from training.report.saliency import explain
from training.sweep import runs
from training.sweep.reproduce import Films, build, report_films, reproduce
from training.sweep.systems import report_systems

pytestmark = pytest.mark.training

SIZE = 64
TRAINED = ("baseline-cnn-3", "resnet-18", "densenet-121-010", "densenet-121-362")
XHTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="module")
def report_rows(films) -> Films:
    """The generated films as the report's subset."""
    rows = datasets.read_rows(films)
    return report_films(
        rows, lambda kept, size: datasets.load_plain(films, kept, size, films / "c"), "patient"
    )


@pytest.fixture(scope="module")
def trained(report_rows, tmp_path_factory) -> Path:
    """Runs of four systems on small films, two epochs each."""
    folder = tmp_path_factory.mktemp("runs")
    for system in report_systems():
        if system.name in TRAINED:
            short = system.model_copy(update={"size": SIZE, "epochs": 2, "batch": 4})
            reproduce(short, report_rows, folder / system.name, best_device(half=False))
            looks.keep(folder / system.name)
    return folder


@pytest.fixture(scope="module")
def page(trained, films, tmp_path_factory) -> Path:
    """The page on them, with the floor."""
    out = tmp_path_factory.mktemp("page")
    write_report(trained, out, data=films, pictures=Pictures.PHANTOM, command="python -m training report")
    return out


def test_the_page_is_whole(page):
    """The HTML is well-formed, each picture is there and small, and nothing comes from elsewhere."""
    tree = etree.fromstring((page / "report.html").read_bytes(), etree.XMLParser(resolve_entities=False))
    sources = [image.get("src") for image in tree.iter(f"{XHTML}img")]
    assert len(sources) > 10
    assert sorted(sources) == sorted(str(path.relative_to(page)) for path in page.rglob("*.png"))
    for source in sources:
        assert (page / source).stat().st_size < 60_000
        Image.open(page / source).verify()
    assert sum((page / source).stat().st_size for source in sources) < 1_500_000
    assert all(image.get("alt") for image in tree.iter(f"{XHTML}img"))
    assert not re.search(r"https?://(?!www\.w3\.org/1999/xhtml)", (page / "report.html").read_text())
    assert set(sources) == set(re.findall(r"\]\((.*?)\)", (page / "report.md").read_text()))


def test_the_page_says_what_it_must(page, trained, report_rows):
    """It names the use, the data, the missing systems, the report's figures beside ours and their doubts."""
    text = (page / "report.md").read_text()
    assert "not a medical device" in text
    assert datasets.digest(report_rows.rows) in text
    missing = next(line for line in text.splitlines() if line.startswith("Not run yet: "))
    assert "DenseNet 10" in missing
    assert "DenseNet 11" not in missing
    line = next(line for line in text.splitlines() if line.startswith("| Accuracy | test |"))
    assert [cell.strip() for cell in line.split("|")[3:6]] == ["90.0", "not run yet", "86.3[1]"]
    assert re.fullmatch(r" \d+\.\d \(\d+\.\d-\d+\.\d\) ", line.split("|")[6])
    assert "no multiple of 1/130" in text
    assert "phantoms" in text
    assert "| Floor |" in text


def test_the_table_has_every_figure(page):
    """Systems have 17 figures on each set, floors 16; only what is counted lacks an interval."""
    with (page / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows} == {*TRAINED, "floor", "floor-apart"}
    assert {row["split"] for row in rows} == {"train", "dev", "test", "srcbal"}
    assert len(rows) == len(TRAINED) * 4 * 17 + 2 * 4 * 16
    for row in rows:
        if row["metric"] in {"support", "patients"}:
            assert (row["low"], row["high"]) == ("", "")
        else:
            least = -1 if row["metric"] == "auroc_above_floor" else 0
            assert least <= float(row["low"]) <= float(row["high"]) <= 1


def test_the_same_runs_make_the_same_page(page, trained, films, tmp_path):
    """A second page has the same bytes in every file."""
    write_report(
        trained, tmp_path, data=films, pictures=Pictures.PHANTOM, command="python -m training report"
    )
    for path in sorted(page.rglob("*.*")):
        assert (tmp_path / path.relative_to(page)).read_bytes() == path.read_bytes(), path.name


def test_a_run_without_weights_or_pictures_has_figures(trained, tmp_path):
    """One system alone, nothing of it but the figures, is still measured; real films are not needed."""
    shutil.copytree(trained / "resnet-18", tmp_path / "runs" / "resnet-18")
    (tmp_path / "runs" / "resnet-18" / runs.BEST).unlink()
    shutil.rmtree(tmp_path / "runs" / "resnet-18" / runs.LOOKS)
    looks.keep(tmp_path / "runs" / "resnet-18")
    write_report(tmp_path / "runs", tmp_path / "out", data=None, pictures=Pictures.PHANTOM, command="-")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "No run holds pictures" in text
    assert "figure-2" not in text
    assert "| ResNet-18 |" in text


def test_pictures_need_no_weights(page, trained, films, tmp_path):
    """The page of runs whose weights are gone is the same to the byte."""
    shutil.copytree(trained, tmp_path / "runs", ignore=shutil.ignore_patterns(runs.BEST))
    write_report(
        tmp_path / "runs",
        tmp_path / "out",
        data=films,
        pictures=Pictures.PHANTOM,
        command="python -m training report",
    )
    for path in sorted(page.rglob("*.*")):
        assert (tmp_path / "out" / path.relative_to(page)).read_bytes() == path.read_bytes(), path.name


def test_real_films_are_named_as_such(trained, films, tmp_path):
    """With real films the page says to keep it, and its files do not name them."""
    with pytest.raises(ConfigurationError, match="--data"):
        write_report(trained, tmp_path, data=None, pictures=Pictures.FILMS, command="-")
    one = tmp_path / "runs"
    shutil.copytree(trained / "densenet-121-362", one / "densenet-121-362")
    write_report(one, tmp_path / "out", data=films, pictures=Pictures.FILMS, command="-")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "keep this page where the films are" in text
    assert "film_" not in text
    shown = (tmp_path / "out" / "pictures" / "densenet-121-362" / "film-1-map.png").read_bytes()
    shutil.copytree(trained / "resnet-18", one / "resnet-18")
    shutil.rmtree(one / "densenet-121-362")
    write_report(one, tmp_path / "out", data=films, pictures=Pictures.PHANTOM, command="-")
    assert shown not in [path.read_bytes() for path in (tmp_path / "out").rglob("*.png")], "a patient stayed"


def test_other_films_are_one_sentence(trained, films, tmp_path):
    """Runs of other films, a run under another's name, and an empty folder are each refused."""
    with pytest.raises(ConfigurationError, match="No run of the report's systems is done"):
        finished_runs(tmp_path)
    shutil.copytree(trained, tmp_path / "runs", ignore=shutil.ignore_patterns("*.safetensors"))
    run = tmp_path / "runs" / "resnet-18"
    lines = (run / runs.PREDICTIONS).read_text().splitlines()
    (run / runs.PREDICTIONS).write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(ConfigurationError, match="not of the same films in the same order"):
        finished_runs(tmp_path / "runs")
    shutil.rmtree(run)
    (tmp_path / "runs" / "densenet-121-010").rename(tmp_path / "runs" / "densenet-121-030")
    with pytest.raises(ConfigurationError, match="is of the system `densenet-121-010`"):
        finished_runs(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "densenet-121-030")
    records = (films / "manifest.csv").read_text().splitlines()
    (tmp_path / "manifest.csv").write_text("\n".join(records[:-1]) + "\n")
    with pytest.raises(ConfigurationError, match="not those that the runs were made from"):
        write_report(
            tmp_path / "runs", tmp_path / "out", data=tmp_path, pictures=Pictures.PHANTOM, command="-"
        )


@pytest.mark.parametrize("name", TRAINED)
def test_the_best_weights_give_the_predictions(name, trained, report_rows):
    """What is loaded for the pictures is what was measured, frozen or not."""
    network = networks.load_best(trained / name)
    pixels = torch.from_numpy(report_rows.load(SIZE)).unsqueeze(1).float() / 255
    with torch.inference_mode():
        logits = networks.logits(network, pixels).numpy()
    assert logits == pytest.approx(runs.read_predictions(trained / name).logits_N, abs=2e-4)


def test_saliency_is_the_steepest_slope_of_three_channels(trained, report_rows):
    """Where the saliency is largest, a small step in one channel moves the logit by as much."""
    network, film = networks.load_best(trained / "baseline-cnn-3"), report_rows.load(SIZE)[0]
    found = explain(network, film)
    row, column = np.unravel_index(found.saliency_HW.argmax(), found.saliency_HW.shape)
    steps = torch.zeros(6, 3, SIZE, SIZE, dtype=torch.float64)
    for channel in range(3):
        steps[channel, channel, row, column] = 1e-5
        steps[channel + 3, channel, row, column] = -1e-5
    pixels = torch.from_numpy(film)[None, None].double().expand(6, 3, -1, -1) / 255
    with torch.inference_mode():
        logits = networks.logits(network.double(), pixels + steps)
    slopes = (logits[:3] - logits[3:]).abs() / 2e-5
    assert float(slopes.max()) == pytest.approx(float(found.saliency_HW[row, column]), rel=1e-3)
    assert found.evidence_hw is None


def test_the_map_adds_up_to_the_logit(trained, report_rows):
    """The mean of the class activation map, bias included, is the film's logit."""
    found = explain(networks.load_best(trained / "densenet-121-362"), report_rows.load(SIZE)[0])
    assert found.evidence_hw is not None
    assert found.evidence_hw.mean() == pytest.approx(found.logit, abs=1e-4)


def test_every_child_of_the_features_has_activations(trained, report_rows):
    """Twelve layers are seen, and the normalisation's output before the ReLU writes over it."""
    network = networks.load_best(trained / "densenet-121-362")
    assert networks.has_map(network)
    found = networks.activations(network, torch.rand(1, 1, SIZE, SIZE))
    assert list(found)[:4] == ["conv0", "norm0", "relu0", "pool0"]
    assert len(found) == 12
    assert float(found["norm0"].min()) < 0 <= float(found["relu0"].min())


def test_weights_of_another_network_are_refused(trained, tmp_path):
    """A run whose weights are of another system stops with one sentence."""
    shutil.copytree(trained / "resnet-18", tmp_path / "resnet-18")
    system = runs.read_configuration(trained / "baseline-cnn-3").system
    network, _ = build(system, "random")
    checkpoint.write_average(tmp_path / "resnet-18" / runs.BEST, network, {"system": "baseline-cnn-3"})
    with pytest.raises(ConfigurationError, match="belongs to another network"):
        networks.load_best(tmp_path / "resnet-18")


@pytest.mark.parametrize(
    ("recall", "auroc", "said"), [(0.9, 0.8, True), (0.8, 0.8, False), (0.9, 0.95, False)]
)
def test_floors_that_call_films_alike_are_no_slip_of_the_pen(recall, auroc, said):
    """Two rows of equal figures look copied: the page says that they are not, unless it is one forest."""
    told = [
        Measurement(system=system, split=split, label=label, metric=metric, value=value)
        for system, called, ranked in ((FLOOR, 0.9, 0.95), (FLOOR_APART, recall, auroc))
        for split in SETS
        for label, metric, value in (
            ("covid", "recall", called),
            ("noncovid", "recall", called),
            ("all", "auroc", ranked),
        )
    ]
    assert ("At p > 0.5" in tables.floors_alike(told)) is said
    assert tables.floors_alike([]) == ""

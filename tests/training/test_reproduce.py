"""A system of the report runs from one command, goes on where it stopped, and is not run twice."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dicom_node.errors import ConfigurationError
from training import checkpoint
from training.__main__ import app
from training.device import best_device
from training.films import datasets
from training.networks.densenet import DenseNet121
from training.networks.freeze import Frozen
from training.sweep import reproduce, runs
from training.sweep.systems import System, report_systems, select

pytestmark = pytest.mark.training


def small(**changes: object) -> System:
    system = System(
        name="small",
        title="Small",
        network="densenet-121",
        size=32,
        batch=4,
        epochs=3,
        optimiser="adam",
        learning_rate=1e-3,
        trainable=30,
    )
    return system.model_copy(update=changes)


@pytest.fixture(scope="module")
def subset(films, tmp_path_factory):
    """The generated films as the report's systems take them."""
    rows = datasets.read_rows(films)
    cache = tmp_path_factory.mktemp("cache")
    return reproduce.report_films(
        rows, lambda kept, size: datasets.load_plain(films, kept, size, cache), "patient"
    )


@pytest.fixture(scope="module")
def done(subset, tmp_path_factory) -> Path:
    """A run from start to end."""
    run = tmp_path_factory.mktemp("runs") / "small"
    reproduce.reproduce(small(), subset, run, best_device())
    return run


def test_a_run_leaves_what_the_report_needs(done, subset):
    """Configuration, an epoch a line, curves, the best weights, a logit for every film; no checkpoint."""
    configuration = runs.read_configuration(done)
    assert configuration.system == small()
    assert configuration.data == datasets.digest(subset.rows)
    assert [epoch.epoch for epoch in runs.read_log(done)] == [1, 2, 3]
    assert list((done / "tensorboard").iterdir())
    predictions = runs.read_predictions(done)
    assert predictions.files == tuple(row.file for row in subset.rows)
    assert np.isfinite(predictions.logits_N).all()
    assert len(np.unique(predictions.logits_N)) > len(subset.rows) // 2  # float32, or logits would tie
    assert not (done / runs.CHECKPOINT).exists()


HEADER = b"file,split,patient_group,srcbal,covid,logit\n"
GOOD = b"a.jpg,test,p-1,0,1,0.5\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + GOOD + b"b.jpg,test,p-2,0,0,nan\n", "line 3: `logit`"),
        (HEADER + GOOD + b"b.jpg,test,p-2,0,0,inf\n", "line 3: `logit`"),
        (HEADER + GOOD + b"b.jpg,test,p-2,0,0,\n", "line 3: `logit`"),
        (HEADER + GOOD + b"b.jpg,test,p-2,0\n", "line 3: `covid`"),
        (HEADER + GOOD + b"b.jpg,test,p-2,0,2,0.5\n", "line 3: `covid`"),
        (HEADER + GOOD + b"b.jpg,sealed,p-2,0,0,0.5\n", "line 3: `split`"),
        (HEADER + GOOD + b"b.jpg,test,,0,0,0.5\n", "line 3: `patient_group`"),
        (HEADER + GOOD + b"b.jpg,test,p-2,0,0,0.5,more\n", "line 3: `a column too many`"),
        (b"file,split\na.jpg,test\n", "line 2: `patient_group`"),
        (HEADER + b"\xff\xfe,test,p-2,0,0,0.5\n", "not a table"),
        (HEADER, "holds no film"),
        (b"", "holds no film"),
    ],
)
def test_a_row_of_predictions_that_is_unusable_is_named(content, said, tmp_path):
    """A logit that is no number would stand on the page as a film that is not COVID."""
    (tmp_path / runs.PREDICTIONS).write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as raised:
        runs.read_predictions(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_is_done_is_not_done_again(done, subset):
    """A second call changes no file."""
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    reproduce.reproduce(small(), subset, done, best_device())
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_sittings_may_be_on_other_machines(done, subset, tmp_path):
    """What is done in one precision is done; what is begun in one does not go on in another."""
    here = best_device()
    other = dataclasses.replace(here, half=not here.half)
    before = (done / runs.PREDICTIONS).stat().st_mtime_ns
    reproduce.reproduce(small(), subset, done, other)
    assert (done / runs.PREDICTIONS).stat().st_mtime_ns == before
    shutil.copy(done / runs.CONFIGURATION, tmp_path)
    with pytest.raises(ConfigurationError, match="or precision"):
        reproduce.reproduce(small(), subset, tmp_path, other)


def test_a_run_of_another_system_is_refused(done, subset):
    """A directory belongs to one system, data and beginning."""
    with pytest.raises(ConfigurationError, match="another system, data"):
        reproduce.reproduce(small(seed=5), subset, done, best_device())


def test_an_interrupted_run_ends_as_if_it_never_was(done, subset, tmp_path, monkeypatch):
    """A run that dies in its last epoch goes on from the checkpoint and says the same of every film."""
    monkeypatch.setattr(reproduce, "CHECKPOINT_EVERY", 0.0)
    learn = reproduce.Trainer.epoch

    def die_in_the_last(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return learn(self, number)

    monkeypatch.setattr(reproduce.Trainer, "epoch", die_in_the_last)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(small(), subset, tmp_path, best_device())
    assert checkpoint.read_checkpoint(tmp_path / runs.CHECKPOINT)[0]["epochs"] == 2
    assert not (tmp_path / runs.PREDICTIONS).exists()
    monkeypatch.setattr(reproduce.Trainer, "epoch", learn)
    reproduce.reproduce(small(), subset, tmp_path, best_device())
    straight, resumed = runs.read_predictions(done), runs.read_predictions(tmp_path)
    np.testing.assert_allclose(resumed.logits_N, straight.logits_N, rtol=1e-2, atol=1e-3)
    assert [epoch.epoch for epoch in runs.read_log(tmp_path)] == [1, 2, 3]


def test_a_partly_frozen_network_goes_on_with_the_moments_it_had(tmp_path):
    """The optimiser knows a part of the parameters: its state comes back to those, laid out as they are."""
    torch.manual_seed(0)
    device = best_device(half=False)

    def begun():
        network = device.place(Frozen(DenseNet121(), 30))
        learning = [p for p in network.parameters() if p.requires_grad]
        return network, torch.optim.Adam(learning, 1e-3, fused=True)

    def learn(network, optimiser, seed):
        torch.manual_seed(seed)
        optimiser.zero_grad()
        network(torch.rand(2, 1, 64, 64)).sum().backward()
        optimiser.step()

    (straight, optimiser), (resumed, other) = begun(), begun()
    for seed in (1, 2):
        learn(straight, optimiser, seed)
    average = checkpoint.average_of(straight)
    checkpoint.write_checkpoint(tmp_path / "c", straight, average, optimiser, {})
    checkpoint.restore(checkpoint.read_checkpoint(tmp_path / "c")[1], resumed, average, other)
    for one, two in zip(optimiser.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert other.state[two]["exp_avg_sq"].stride() == optimiser.state[one]["exp_avg_sq"].stride()
    for network, one in ((straight, optimiser), (resumed, other)):
        network.eval()
        learn(network, one, 3)
    for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_run_that_goes_on_elsewhere_says_where_it_began(subset, tmp_path, monkeypatch):
    """The page's device and commit are of all that made the run, not only of what ended it."""
    learn = reproduce.Trainer.epoch

    def die(self, number):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.Trainer, "epoch", die)
    monkeypatch.setattr(reproduce, "commit", lambda: "first")
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(small(), subset, tmp_path, best_device())
    monkeypatch.setattr(reproduce.Trainer, "epoch", learn)
    for commit in ("second", "second"):
        monkeypatch.setattr(reproduce, "commit", lambda commit=commit: commit)
        reproduce.reproduce(small(), subset, tmp_path, best_device())
    found = runs.read_configuration(tmp_path)
    assert (found.commit, found.device) == ("first, then second", best_device().name)


def test_a_kept_prefix_changes_nothing(subset, monkeypatch):
    """An epoch with the frozen part kept teaches what an epoch with everything computed anew does."""
    logits = []
    for kept in (True, False):
        network, _ = reproduce.build(small(), "random")
        assert network.cached
        network.cached = kept
        trainer = reproduce.Trainer(small(), subset, best_device(half=False), network)
        trainer.epoch(0)
        logits.append(trainer.infer(trainer.network, np.arange(len(subset.rows))))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4)


def test_up_sampling_shows_both_classes_alike(subset):
    """Model 4 of the baseline repeats COVID films until there are as many."""
    network, _ = reproduce.build(small(network="baseline-cnn", trainable=0, upsample=True), "random")
    system = small(network="baseline-cnn", trainable=0, upsample=True)
    trainer = reproduce.Trainer(system, subset, best_device(), network)
    labels_N = datasets.targets(subset.rows)
    shown = np.concatenate(list(trainer._batches(0)))
    assert labels_N[shown].sum() == (~labels_N[shown]).sum()
    assert set(shown) <= set(subset.places("train"))


def test_batch_of_one_never_comes(subset):
    """The last batch joins the others: one film alone has no variance to normalise with."""
    system = small(batch=3)
    network, _ = reproduce.build(system, "random")
    trainer = reproduce.Trainer(system, subset, best_device(), network)
    assert min(len(batch) for batch in trainer._batches(0)) > 1


def test_a_subset_without_a_class_is_refused(films):
    """The report's subset needs both classes in each split."""
    rows = [row for row in datasets.read_rows(films) if row.split != "dev" or row.positive]
    with pytest.raises(ConfigurationError, match="no film of one class in `dev`"):
        reproduce.report_films(
            rows, lambda kept, size: np.zeros((len(kept), size, size), np.uint8), "patient"
        )


def test_the_command_runs_the_systems_that_are_named(films, tmp_path):
    """`reproduce --only` takes the systems of a file by their name."""
    systems = tmp_path / "systems.toml"
    common = 'size = 32\nbatch = 4\nepochs = 1\noptimiser = "sgd"\nlearning_rate = 1e-3\n'
    systems.write_text(
        f'[one]\ntitle = "One"\nnetwork = "resnet-18"\n{common}'
        f'[two]\ntitle = "Two"\nnetwork = "baseline-cnn"\nregularised = true\n{common}'
    )
    arguments = [
        "reproduce",
        "--data",
        str(films),
        "--runs",
        str(tmp_path / "runs"),
        "--systems",
        str(systems),
    ]
    done = CliRunner().invoke(app, [*arguments, "--only", "two", "--cache", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    assert json.loads((tmp_path / "runs" / "two" / runs.CONFIGURATION).read_text())["init"] == "random"
    refused = CliRunner().invoke(app, [*arguments, "--only", "three"])
    assert "`three` is no system; there are one, two." in str(refused.exception)


def test_systems_are_selected_in_their_own_order():
    """Sixteen without a name."""
    assert len(select(report_systems(), ())) == 16
    chosen = select(report_systems(), ["resnet-18", "baseline-cnn-2"])
    assert [system.name for system in chosen] == ["baseline-cnn-2", "resnet-18"]


def test_weights_of_a_run_begin_another(done, tmp_path):
    """What a run has learnt can be begun with, tensor by tensor."""
    network, loaded = reproduce.build(small(trainable=0), f"pretrained:{done / runs.BEST}")
    assert loaded.startswith("pretrained:best.safetensors sha256:")
    assert all(torch.isfinite(p).all() for p in network.parameters())

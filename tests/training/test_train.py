"""A run can be stopped anywhere and says so when it cannot go on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from dicom_node.errors import ConfigurationError
from training import checkpoint, tasks
from training.bundle.provenance import RunRecord, in_turn
from training.device import best_device
from training.films import datasets
from training.networks.densenet import DenseNet121
from training.settings import Stage, TrainingSettings, read_settings
from training.train import CHECKPOINT, CONFIGURATION, LOG, load_network, train

pytestmark = pytest.mark.training

SETTINGS = TrainingSettings(
    stages=(Stage(size=32, epochs=1), Stage(size=64, epochs=1)),
    films_per_epoch=8,
    batch=4,
    evaluate_every=9,
    threads=1,
)


@pytest.fixture(scope="module")
def trained(films, tmp_path_factory):
    """A short run from start to end, with what it was made from."""
    base = tmp_path_factory.mktemp("train")
    rows = datasets.read_rows(films)
    inputs_NHW = datasets.load_inputs(films, rows, base / "cache")
    train(SETTINGS, rows, inputs_NHW, base / "run")
    return rows, inputs_NHW, base / "run"


def test_a_run_says_what_it_was(trained):
    """The run directory holds settings, data digest, positive weight, and a line for every epoch."""
    rows, _, run = trained
    record = RunRecord.model_validate_json((run / CONFIGURATION).read_bytes())
    assert record.settings == SETTINGS
    assert record.data == datasets.digest(rows)
    learnt = datasets.trainable(rows)
    assert record.positive_weight == pytest.approx(
        sum(not row.positive for row in learnt) / sum(row.positive for row in learnt)
    )
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    assert [(line["epoch"], line["size"]) for line in lines] == [(1, 32), (2, 64)]
    assert 0 <= lines[-1]["dev_auroc"] <= 1


def test_an_interrupted_run_ends_as_if_it_never_was(trained, tmp_path, monkeypatch):
    """A run that dies after its first epoch and is started again ends with the same weights."""
    rows, inputs_NHW, run = trained
    write = checkpoint.write_checkpoint

    def write_then_die(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_checkpoint", write_then_die)
    with pytest.raises(KeyboardInterrupt):
        train(SETTINGS, rows, inputs_NHW, tmp_path)
    monkeypatch.undo()
    train(SETTINGS, rows, inputs_NHW, tmp_path)
    _, straight = checkpoint.read_checkpoint(run / CHECKPOINT)
    _, interrupted = checkpoint.read_checkpoint(tmp_path / CHECKPOINT)
    for name, tensor in straight.items():
        torch.testing.assert_close(interrupted[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_other_settings_do_not_go_on_with_a_run(trained):
    """A run directory is refused when settings differ from those that it was begun with."""
    rows, inputs_NHW, run = trained
    other = SETTINGS.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(ConfigurationError, match="other settings or films"):
        train(other, rows, inputs_NHW, run)


def test_the_stages_ahead_may_be_planned_anew(trained, tmp_path):
    """A run goes on with other stages ahead and notes it; what lies behind cannot be rewritten."""
    rows, inputs_NHW, run = trained
    (tmp_path / CHECKPOINT).write_bytes((run / CHECKPOINT).read_bytes())
    longer = SETTINGS.model_copy(update={"stages": (*SETTINGS.stages, Stage(size=32, epochs=1))})
    train(longer, rows, inputs_NHW, tmp_path)
    record = RunRecord.model_validate_json((tmp_path / CONFIGURATION).read_bytes())
    assert record.planned_anew == (2,)
    assert json.loads((tmp_path / LOG).read_text())["epoch"] == 3
    rewritten = SETTINGS.model_copy(update={"stages": (Stage(size=64, epochs=3),)})
    with pytest.raises(ConfigurationError, match="other settings or films"):
        train(rewritten, rows, inputs_NHW, tmp_path)


def test_the_rate_rises_and_falls():
    """The learning rate warms up to its peak and ends at one hundredth of it."""
    settings = TrainingSettings()
    rates = [settings.rate_at(share * settings.epochs) for share in (0, 0.05, 0.5, 1)]
    assert rates[1] == max(rates) == pytest.approx(1e-3)
    assert rates[0] == pytest.approx(1e-5)
    assert rates[3] == pytest.approx(1e-5)
    assert rates[1] > rates[2] > rates[3]


def test_a_run_that_is_not_over_is_not_used(trained, tmp_path):
    """Its network is no result; the sentence says how far it is."""
    metadata, _ = checkpoint.read_checkpoint(trained[2] / CHECKPOINT)
    network = tasks.MultiTask(DenseNet121())
    checkpoint.write_average(tmp_path / CHECKPOINT, network, metadata | {"epochs": 1})
    with pytest.raises(ConfigurationError, match="is not over: 1 of 2 epochs"):
        load_network(tmp_path)
    checkpoint.write_average(tmp_path / CHECKPOINT, network, {"system": "resnet-18"})
    with pytest.raises(ConfigurationError, match="of another version or network"):
        load_network(tmp_path)


def test_a_run_keeps_who_made_it(trained, tmp_path, monkeypatch):
    """Looked at again it is what it was; gone on with, it names both codes; another precision is refused."""
    rows, inputs_NHW, run = trained
    (tmp_path / CHECKPOINT).write_bytes((run / CHECKPOINT).read_bytes())
    made = RunRecord.model_validate_json((run / CONFIGURATION).read_bytes())
    monkeypatch.setattr("training.train.commit", lambda: "another")
    train(SETTINGS, rows, inputs_NHW, tmp_path)
    assert RunRecord.model_validate_json((tmp_path / CONFIGURATION).read_bytes()) == made
    longer = SETTINGS.model_copy(update={"stages": (*SETTINGS.stages, Stage(size=32, epochs=1))})
    other = dataclasses.replace(best_device(), half=made.precision == "float32")
    with monkeypatch.context() as patched:
        patched.setattr("training.train.best_device", lambda: other)
        with pytest.raises(ConfigurationError, match="was begun in"):
            train(longer, rows, inputs_NHW, tmp_path)
    train(longer, rows, inputs_NHW, tmp_path)
    record = RunRecord.model_validate_json((tmp_path / CONFIGURATION).read_bytes())
    assert record.commit == f"{made.commit}, then another"


@pytest.mark.parametrize(
    ("begun", "now", "said"),
    [
        ("a", "a", "a"),
        ("a", "b", "a, then b"),
        ("a, then b", "b", "a, then b"),
        ("a, then b", "a", "a, then b"),
        ("ab", "a", "ab, then a"),
        ("", "", ""),
        ("", "b", "unknown, then b"),
        ("a", "", "a, then unknown"),
        ("a, then unknown", "", "a, then unknown"),
    ],
)
def test_each_that_made_a_run_is_named_once(begun, now, said):
    """Also one whose name begins another's, and code that no commit is known of."""
    assert in_turn(begun, now) == said


def test_the_heads_may_learn_first(trained, tmp_path):
    """In their epochs the features stay as they began, running statistics too; then all of it learns."""
    rows, inputs_NHW, _ = trained
    settings = SETTINGS.model_copy(update={"head_epochs": 1, "films_per_epoch": 4})
    assert settings.rate_at(0.9) == 10 * settings.learning_rate
    for stages, stays in ((1, True), (2, False)):
        planned = settings.model_copy(update={"stages": (Stage(size=32, epochs=stages),)})
        torch.manual_seed(planned.seed)
        began = DenseNet121().state_dict()
        train(planned, rows, inputs_NHW, tmp_path)
        _, learnt = checkpoint.read_checkpoint(tmp_path / CHECKPOINT)
        for name, tensor in began.items():
            same = torch.equal(learnt[f"model.network.{name}"], tensor)
            assert same is (stays and name.startswith("features.")), name


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    """Half a checkpoint is one sentence, not a traceback from inside a library."""
    whole = (trained[2] / CHECKPOINT).read_bytes()
    path = tmp_path / CHECKPOINT
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match="missing or damaged"):
        checkpoint.read_checkpoint(path)


def test_a_checkpoint_of_another_network_is_refused(trained):
    """Weights that do not fit name the checkpoint."""
    with pytest.raises(ConfigurationError, match="belongs to another network"):
        checkpoint.load_average(trained[2] / CHECKPOINT, torch.nn.Linear(2, 2))


def test_a_failed_write_keeps_the_checkpoint_before(trained, tmp_path, monkeypatch):
    """When writing fails, the last checkpoint is still whole."""
    path = tmp_path / CHECKPOINT
    path.write_bytes((trained[2] / CHECKPOINT).read_bytes())
    before = checkpoint.digest(path)

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.files.os.fsync", disk_full)
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(model.parameters())
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_checkpoint(path, model, checkpoint.average_of(model), optimiser, {})
    assert checkpoint.digest(path) == before


def test_the_average_follows_the_model():
    """A step moves the average by one minus the decay, running statistics included."""
    model = torch.nn.BatchNorm1d(1)
    average = checkpoint.average_of(model)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(1.0)
    checkpoint.follow(average, model, 0.9)
    assert average.weight.item() == pytest.approx(1.2)
    assert average.running_mean.item() == pytest.approx(0.1)


def test_settings_are_read_from_a_file(tmp_path):
    """A TOML file changes what it names; what it misspells is named."""
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\n[[stages]]\nsize = 64\nepochs = 2\n")
    assert read_settings(path) == TrainingSettings(seed=3, stages=(Stage(size=64, epochs=2),))
    path.write_text("sede = 3\n")
    with pytest.raises(ConfigurationError, match="`sede`"):
        read_settings(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('sampling = "balanced"\nopacity_share = 1.0', "not usable at `opacity_share`"),
        ("opacity_share = 0.5", "opacity_share is of balanced sampling"),
        ("head_epochs = -1", "not usable at `head_epochs`"),
        ("[weights]\nlungs = inf", "not usable at `weights.lungs`"),
        ("learning_rate = nan", "not usable at `learning_rate`"),
    ],
)
def test_settings_that_leave_nothing_to_draw_are_one_sentence(tmp_path, text, sentence):
    """A share that takes all of a class or is never looked at, epochs that cannot be, and no numbers."""
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence):
        read_settings(path)


def test_a_loss_that_is_no_number_ends_the_run(trained, tmp_path):
    """Nothing that was learnt of it is kept, and the sentence says from what."""
    rows, inputs_NHW, _ = trained
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(ConfigurationError, match=r"The loss of epoch \d is no number"):
        train(settings, rows, inputs_NHW, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_run_does_not_go_on_with_another_network(trained):
    """Tensors of another network are one sentence, not a trace."""
    _, tensors = checkpoint.read_checkpoint(trained[2] / CHECKPOINT)
    other = torch.nn.Linear(2, 1)
    with pytest.raises(ConfigurationError, match="of another network"):
        checkpoint.restore(tensors, other, checkpoint.average_of(other), torch.optim.Adam(other.parameters()))

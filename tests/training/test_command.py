"""`python -m training` from the outside."""

from __future__ import annotations

import sys

import pytest
import structlog

from dicom_node.errors import ConfigurationError
from training.__main__ import main
from training.bundle.card_maps import maps
from training.evaluation.evaluate import Evaluation
from training.explain.explanation import read_explanation

pytestmark = pytest.mark.training


@pytest.fixture
def run_command(monkeypatch):
    """Run one command line and return the exit code; its logs end with it."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["training", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert sys.float_info.min / 2 > 0, "the command left the thread without denormal numbers"
        return ended.value.code

    yield run
    structlog.reset_defaults()


def test_films_become_an_evaluated_run(films, tmp_path, run_command, capsys):
    """Training and evaluation leave a run that can be exported."""
    config = tmp_path / "run.toml"
    config.write_text("films_per_epoch = 4\nbatch = 4\nthreads = 1\n[[stages]]\nsize = 32\nepochs = 1\n")
    places = ("--data", films, "--run", tmp_path / "run", "--cache", tmp_path / "cache")
    assert run_command("train", *places, "--config", config) == 0
    assert run_command("export", "--data", films, "--run", tmp_path / "run", "--bundle", tmp_path / "b") == 2
    assert "run `evaluate` first" in capsys.readouterr().err
    assert run_command("evaluate", *places) == 0
    evaluation = Evaluation.model_validate_json((tmp_path / "run" / "evaluation.json").read_bytes())
    assert {"dev", "test"} <= {figures.rows for figures in evaluation.figures}
    assert run_command("explain", *places, "--films", 1) == 0
    found = read_explanation(tmp_path / "run", evaluation.checkpoint_sha256, evaluation.data_sha256)
    assert found.films == 6
    assert {part.order for part in found.removal} == {"cam", "saliency", "random"}
    assert "| 3 COVID" in maps(found)
    assert "without lungs, they are grey" in maps(found)
    assert "Training asked for this" not in maps(found)
    assert "Training asked for this" in maps(found, asked=True)
    with pytest.raises(ConfigurationError, match="of other weights or films"):
        read_explanation(tmp_path / "run", "others", evaluation.data_sha256)
    assert read_explanation(tmp_path, "none", "none") is None


def test_explain_wants_one_network_and_a_split(films, tmp_path, run_command, capsys):
    """Neither or both of run and bundle, or a split that is none, ends with one sentence."""
    assert run_command("explain", "--data", films) == 2
    assert "Name either a run or a bundle" in capsys.readouterr().err
    assert run_command("explain", "--data", films, "--run", tmp_path, "--split", "sealed") == 2
    assert "`sealed` is not a split" in capsys.readouterr().err


def test_what_is_wrong_is_one_sentence(tmp_path, run_command, capsys):
    """A folder without films ends with exit code 2 and one sentence on stderr."""
    assert run_command("train", "--data", tmp_path, "--run", tmp_path / "run") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: The film catalogue")


def test_a_report_on_nothing_is_one_sentence(tmp_path, run_command, capsys):
    """A folder without a run that is done ends with exit code 2, and no page is begun."""
    assert run_command("report", "--runs", tmp_path, "--out", tmp_path / "page") == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("Error: No run of the report's systems is done")
    )
    assert not (tmp_path / "page").exists()

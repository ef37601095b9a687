"""`python -m training` from the outside."""

from __future__ import annotations

import pytest
import structlog

from training.__main__ import main
from training.evaluate import Evaluation

pytestmark = pytest.mark.training


@pytest.fixture
def run_command(monkeypatch):
    """Run one command line and return the exit code; its logs end with it."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["training", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
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

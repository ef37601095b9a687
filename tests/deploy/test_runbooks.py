"""Every command in the runbooks is run, over a site that was really scored."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.cli import app
from tests.deploy.site import STUDIES, scored_folder, site  # noqa: F401 (fixtures)
from worker.bundle import Bundle
from worker.settings import DEFAULT_BUNDLE

RUNBOOKS = Path(__file__).parents[2] / "deploy" / "runbooks"
BOOKS = sorted(RUNBOOKS.glob("[0-9]*.md"))
_MAY_FAIL = {
    "doctor",  # no node, broker or worker runs here, and it says so
    "drain",
    "quarantine",  # nothing was set aside
    "release",  # the study is done
}
"""Commands whose exit code tells of the site; the others must end with 0."""


def first_commands(book: Path) -> list[str]:
    """The second column of the table of symptoms, and what stands in blocks of commands."""
    text = book.read_text()
    rows = re.findall(r"^\| [^|]+ \| `([^`|]+)` \|", text, re.MULTILINE)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [*rows, *(line for block in blocks for line in block.splitlines())]


COMMANDS = list(dict.fromkeys(one for book in BOOKS for one in first_commands(book)))


def test_the_runbooks_are_there_in_the_order_of_the_way():
    """Ten, each with its first commands."""
    assert len(BOOKS) == 10
    assert all(len(first_commands(book)) >= 3 for book in BOOKS)


def test_links_between_runbooks_lead_somewhere():
    """A name in the night must be right."""
    for book in BOOKS:
        for target in re.findall(r"\]\(([^)]+)\)", book.read_text()):
            assert (RUNBOOKS / target).is_file(), f"{book.name}: {target}"


def test_every_command_that_is_named_exists():
    """Those in the last column, too."""
    import typer

    known = typer.main.get_command(app).commands
    for book in BOOKS:
        for name in re.findall(r"`covariance ([a-z-]+)", book.read_text()):
            assert name in known, f"{book.name}: {name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command, site, invoke, tmp_path, monkeypatch):  # noqa: F811
    """As it stands, with a study, a digest and a log in their places."""
    monkeypatch.setenv("COVARIANCE_CONFIG", "covariance.toml")
    (tmp_path / "LOG").write_text("worker_ready association_rejected object_refused decoder_replaced\n")
    (tmp_path / "LOG").open("a").write("commitment_not_accepted draining\n")
    shutil.copytree(tmp_path / "spool", tmp_path / "covariance-data" / "spool")
    digest = Bundle(DEFAULT_BUNDLE).manifest.model.sha256[:12]
    words = [
        {"STUDY": STUDIES[0], "DIGEST": digest}.get(word, word) for word in command.replace('"', "").split()
    ]
    if words[0] != "covariance":
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    monkeypatch.delenv("COVARIANCE_CONFIG")
    done = invoke("--config", "covariance.toml", *words[1:])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Usage:" not in done.stderr, done.stderr
    assert done.exit_code == 0 or words[1] in _MAY_FAIL, done.output

"""What a script sees of the command: exit codes, and one sentence on stderr."""

from __future__ import annotations

import json

import pytest

from deploy.overview import queue_in_words
from worker.ledger import open_ledger
from worker.settings import Settings


@pytest.fixture
def ledger(invoke):
    """An empty ledger where the command looks for it."""
    with open_ledger(Settings(), migrate=True) as opened:
        yield opened


def test_version_is_printed(invoke):
    """`--version` names the program and its version."""
    done = invoke("--version")
    assert (done.exit_code, done.output.split()[0]) == (0, "covariance")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["score"],
        ["--config", "nowhere.toml", "status"],
        ["config", "check", "nowhere.toml"],
        ["send", "film.dcm", "--to", "no-target"],
        ["audit", "verify", "--expect", "no-head"],
        ["status"],
    ],
)
def test_wrong_usage_or_settings_are_exit_code_2(invoke, arguments):
    """What must be changed by people first ends with 2."""
    assert invoke(*arguments).exit_code == 2


def test_an_error_is_one_sentence_on_stderr(covariance):
    """An expected error is one line without a traceback, and nothing goes to stdout."""
    done = covariance("--config", "nowhere.toml", "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "covariance: There is no settings file nowhere.toml that can be read: name one.\n"


def test_help_loads_nothing_heavy(covariance):
    """`--help` answers without the libraries of the stations."""
    done = covariance("--help", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"numpy", "pydicom", "sqlalchemy", "celery", "cv2", "openvino", "pydantic"}


def test_status_counts_as_json(invoke, ledger):
    """`status --json` is one JSON document with a count for every station."""
    done = invoke("status", "--json")
    assert done.exit_code == 0, done.output
    state = json.loads(done.stdout)
    assert state["images"] == {"pending": 0, "scored": 0, "by_policy": 0, "quarantined": 0}
    assert state["queue"] == {"waiting": None, "lanes": {}}


def test_show_of_an_unknown_study_fails(invoke, ledger):
    """A study that nobody knows is exit code 1, with a sentence."""
    done = invoke("show", "1.2.3")
    assert done.exit_code == 1
    assert "No study in the ledger ends with 1.2.3" in done.stderr


def test_retry_says_when_there_is_nothing_to_do(invoke, ledger):
    """`retry` on a clean ledger changes nothing and is no failure."""
    done = invoke("retry")
    assert (done.exit_code, done.stdout) == (0, "Nothing was set aside.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["recall"], 2, "Missing option '--model'"),
        (["recall", "--model", "abc"], 2, "begins with abc: give at least 8"),
        (["recall", "--model", "0" * 12], 2, "0" * 12),
        (["recall", "--model", "x" * 64, "--yes"], 2, "No result is of a model"),
        (["recall", "--model", "0" * 12, "--rejected-for", "fun"], 2, "fun"),
        (["quarantine", "list", "--reason", "no"], 2, "There is no reason no"),
        (["quarantine", "list", "--limit", "0"], 2, "--limit"),
        (["quarantine", "release"], 2, "Say which: a study, --reason CODE or --all."),
        (["quarantine", "release", "--reason", "no"], 2, "There is no reason no"),
        (["quarantine", "release", "1.2.3"], 1, "0 studies are scored again."),
    ],
)
def test_corrections_that_cannot_be_are_told_so(invoke, ledger, arguments, code, sentence):
    """On a ledger that is there: it is the argument that is refused, and nothing is on record."""
    done = invoke(*arguments)
    assert (done.exit_code, sentence in done.output) == (code, True), done.output
    assert ledger.head().events == 0


def test_audit_verify_of_a_sound_chain(invoke, ledger):
    """A sound chain is exit code 0, and its head is printed to be kept elsewhere."""
    done = invoke("audit", "verify")
    assert done.exit_code == 0
    assert f"--expect 0:{'0' * 64}" in done.stdout


def test_audit_verify_of_a_cut_chain(invoke, ledger):
    """A chain that is shorter than the head that was kept is exit code 1."""
    done = invoke("audit", "verify", "--expect", f"3:{'a' * 64}")
    assert done.exit_code == 1
    assert "3 were noted" in done.stdout


def test_audit_checkpoint_is_printed_and_kept(invoke, ledger, tmp_path):
    """`audit checkpoint` prints the head and adds it to the file; `audit verify` then counts it."""
    file = tmp_path / "checkpoints"
    done = invoke("audit", "checkpoint", "--file", file)
    assert (done.exit_code, done.stdout) == (0, f"0:{'0' * 64}\n")
    done = invoke("audit", "verify", "--file", file)
    assert done.exit_code == 0
    assert "fits all 1 checkpoints" in done.stdout


def test_audit_verify_names_the_checkpoint_that_does_not_fit(invoke, ledger, tmp_path):
    """A trail that is shorter than a checkpoint says is exit code 1, and that checkpoint is named."""
    file = tmp_path / "checkpoints"
    line = {"at": "2026-03-01T12:00:00Z", "events": 7, "hash": "a" * 64}
    file.write_text(json.dumps(line) + "\n")
    done = invoke("audit", "verify", "--file", file)
    assert done.exit_code == 1
    assert "7 were noted (checkpoint of 2026-03-01T12:00:00+00:00)" in done.stdout
    assert invoke("audit", "checkpoint", "--file", file).exit_code == 1


def test_audit_roles_of_sqlite(invoke, ledger):
    """SQLite has no roles, and the command says so."""
    done = invoke("audit", "roles")
    assert done.exit_code == 0
    assert "SQLite has no roles" in done.stdout


def test_purge_of_nothing_removes_nothing(invoke, ledger):
    """`purge` says what would go, in films, studies and bytes, and needs --yes to do it."""
    assert "0 films of 0 studies, 0 bytes would go" in invoke("purge").output
    assert "0 films purged" in invoke("purge", "--yes").output


@pytest.mark.parametrize(
    ("lanes", "told"),
    [
        ({"stat": 1, "routine": 0, "backfill": 40}, "41 waiting (1 stat, 40 backfill)"),
        ({"stat": 0, "routine": 0, "backfill": 0}, "0 waiting"),
    ],
)
def test_status_tells_lanes_apart(lanes, told):
    """The row of the queue names the lanes that something waits in."""
    assert queue_in_words(sum(lanes.values()), lanes) == told

"""Nothing that serves brings objects to life from bytes: a model, a message or an answer executes nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.exceptions import ContentDisallowed
from kombu.serialization import loads, prepare_accept_content

from dicom_node.dispatch import celery_app
from dicom_node.settings import NodeSettings

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for package in ("dicom_node", "worker", "deploy") for path in (ROOT / package).rglob("*.py")
)
EXECUTABLE = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
}
"""Modules whose data may name code."""
UNPICKLERS = {"multiprocessing"}
"""Modules whose channels pickle whatever goes through them."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_search_sees_the_sources():
    """The files that the tests below read are those that serve."""
    assert {"worker/guard.py", "worker/bundle.py", "dicom_node/dispatch.py"} <= {str(p) for p, _ in trees()}


def test_no_module_that_executes_data_is_imported():
    """No module of the serving path imports pickle or one of its kind, nor a channel that pickles."""
    found = {(str(path), name) for path, tree in trees() for name in imported(tree)}
    assert not {(path, name) for path, name in found if name in EXECUTABLE | UNPICKLERS}


def test_arrays_are_loaded_without_pickles():
    """Every `np.load` says `allow_pickle=False`, and torch loads nothing here."""
    for path, tree in trees():
        for name, call in calls(tree):
            if name in ("np.load", "numpy.load"):
                keywords = {one.arg: ast.unparse(one.value) for one in call.keywords}
                assert keywords.get("allow_pickle") == "False", path
            assert name not in ("torch.load", "eval", "exec", "yaml.load"), path


def test_messages_are_json_and_nothing_else():
    """The doorbell is rung in JSON, and a worker takes nothing else from the broker."""
    conf = celery_app(NodeSettings()).conf
    assert (conf.task_serializer, set(conf.accept_content)) == ("json", {"json"})


def test_a_message_that_is_a_pickle_is_not_read():
    """kombu, with what our application accepts, refuses a pickle before it looks into it."""
    accepted = celery_app(NodeSettings()).conf.accept_content
    with pytest.raises(ContentDisallowed):
        loads(
            b"\x80\x04.", "application/x-python-serialize", "binary", accept=prepare_accept_content(accepted)
        )

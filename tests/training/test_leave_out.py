"""A source that is left out teaches nothing, and is what is asked."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from training.evaluation import floor
from training.evaluation.leave_out import FOLDS, RESULT, _asked, _learnt, leave_one_source_out
from training.films import datasets
from training.settings import Stage, TrainingSettings
from worker import preprocess

pytestmark = pytest.mark.training
SETTINGS = TrainingSettings(stages=(Stage(size=32, epochs=1),), films_per_epoch=8, batch=4, threads=1)


@pytest.fixture(scope="module")
def rows(films):
    """The generated films as if of the catalogue's sources: COVID of all but one hospital."""
    covid, other = ("hannover", "cxnet", "ieee8023"), ("nih14", "nih14", "ieee8023")
    return [
        dataclasses.replace(row, origin=(covid if row.positive else other)[number // 2 % 3])
        for number, row in enumerate(datasets.read_rows(films))
    ]


@pytest.mark.parametrize("fold", FOLDS)
def test_no_fold_asks_what_it_has_learnt(rows, fold):
    """Films and patients learnt from are never asked, and COVID films asked are of the sources left out."""
    learnt_N, asked_N = _learnt(rows, FOLDS[fold]), _asked(rows, FOLDS[fold])
    assert learnt_N.any()
    assert asked_N.any()
    assert not (learnt_N & asked_N).any()
    assert {row.origin for row, asked in zip(rows, asked_N, strict=True) if asked and row.positive} == set(
        FOLDS[fold]
    ) - {"figure1"}
    assert not any(row.origin in FOLDS[fold] for row, use in zip(rows, learnt_N, strict=True) if use)


def test_a_candidate_is_measured_on_every_fold(rows, films, tmp_path):
    """Each fold has its own run; the result holds network and floor beside each other."""
    inputs_NHW = datasets.load_inputs(films, rows, tmp_path)
    found = leave_one_source_out(SETTINGS, rows, inputs_NHW, floor.statistics(films, rows), tmp_path / "run")
    assert set(found.folds) == set(FOLDS)
    for fold in found.folds.values():
        assert 0 <= fold.auroc.low <= fold.auroc.value <= fold.auroc.high <= 1
        assert 0 < fold.positive < fold.films
        assert fold.maps.films == fold.positive
    assert found.mean == pytest.approx(np.mean([fold.auroc.value for fold in found.folds.values()]))
    assert json.loads((tmp_path / "run" / RESULT).read_text())["folds"]["web"]["left_out"] == list(
        FOLDS["web"]
    )


def test_a_fold_alone_does_not_forget_the_others(rows, films, tmp_path):
    """Folds may be measured in several sittings; those of other settings are no part of the result."""
    given = rows, datasets.load_inputs(films, rows, tmp_path), floor.statistics(films, rows)
    one, other = tmp_path / "one", tmp_path / "other"
    leave_one_source_out(SETTINGS, *given, one, only=["web"])
    both = leave_one_source_out(SETTINGS, *given, one, only=["hannover"])
    assert set(both.folds) == {"web", "hannover"}
    other.mkdir()
    shutil.copy(one / RESULT, other)
    changed = SETTINGS.model_copy(update={"weight_decay": 0.5})
    assert set(leave_one_source_out(changed, *given, other, only=["web"]).folds) == {"web"}


def test_a_fold_without_a_class_is_refused(rows, films, tmp_path):
    """Without another source of films that are not COVID there is nothing to ask."""
    few = [row for row in rows if row.positive or row.origin == "nih14"]
    with pytest.raises(ConfigurationError, match="The fold `web` asks no film of one class"):
        leave_one_source_out(
            SETTINGS,
            few,
            np.zeros((len(few), preprocess.SIZE, preprocess.SIZE), np.uint8),
            np.zeros((len(few), 8)),
            tmp_path,
        )

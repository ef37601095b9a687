"""A second bundle scores beside the first, and costs it nothing."""

from __future__ import annotations

import shutil

import pytest

from deploy.shadow import agreements
from dicom_node.spool import Spool
from tests.deploy.site import film, spool_film
from tests.worker.build import settings_in
from worker import metrics
from worker.bundle import Bundle, write_manifest
from worker.ledger import ShadowScore, open_ledger
from worker.pipeline import Pipeline
from worker.scorer import Scorer
from worker.settings import DEFAULT_BUNDLE
from worker.shadow import Shadow

STUDY = "1.2.840.7"


def test_the_shadow_notes_both_scores_and_writes_nothing_back(tmp_path):
    """The same network with a threshold of 0.01 disagrees on the decision and not on the probability."""
    folder = tmp_path / "next"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    manifest = Bundle(folder).manifest
    point = manifest.operating_point.model_copy(update={"probability": 0.01, "name": "lenient@dev"})
    golden = manifest.golden.model_copy(update={"logit_tolerance": 0.25})
    write_manifest(manifest.model_copy(update={"operating_point": point, "golden": golden}), folder)
    worker = {"decoders": 1, "engine_cache": tmp_path / "engine", "shadow_bundle": folder}
    settings = settings_in(tmp_path, worker=worker)
    spool = Spool(settings.spool.path)
    spool.prepare()
    spool_film(spool, film(STUDY))
    with (
        Scorer(settings) as scorer,
        Shadow(settings.worker) as shadow,
        open_ledger(settings, migrate=True) as ledger,
    ):
        pipeline = Pipeline(
            settings=settings, spool=spool, ledger=ledger, scorer=scorer, worker="w", shadow=shadow
        )
        pipeline.score_study(STUDY)
        (result,) = ledger.study(STUDY).results
        (score,) = ledger.shadow_scores(shadow.bundle.sha256[:8])
        assert score.shadow_positive
        assert score.shadow_probability == pytest.approx(result.probability, abs=1e-3)
        assert {output.role for output in result.outputs} == {"sr", "sc"}
        ledger.note_shadow([score])
        assert len(ledger.shadow_scores()) == 1
        told = "covariance_parity_gate_logit_tolerance"
        assert metrics.WORKER.get_sample_value(told, {"bundle": "shadow"}) == 0.25
        ours = scorer.bundle.manifest.golden.logit_tolerance
        assert metrics.WORKER.get_sample_value(told, {"bundle": "serving"}) == ours != 0.25


def test_agreement_is_counted_by_hand():
    """Four films: both, neither, and one each way."""

    def score(number, ours, theirs):
        return ShadowScore(
            study_instance_uid="1.2",
            generation=1,
            sop_instance_uid=f"1.2.{number}",
            model_sha256="a",
            positive=ours,
            probability=0.9 if ours else 0.1,
            shadow_sha256="b",
            shadow_positive=theirs,
            shadow_probability=0.9 if theirs else 0.1,
        )

    cells = [(True, True), (False, False), (True, False), (False, True)]
    (found,) = agreements([score(n, *cell) for n, cell in enumerate(cells)])
    assert (found.films, found.both_positive, found.both_negative) == (4, 1, 1)
    assert (found.only_model, found.only_shadow, found.agree) == (1, 1, 0.5)
    assert found.kappa == pytest.approx(0.0)
    assert found.mean_difference == pytest.approx(0.4)

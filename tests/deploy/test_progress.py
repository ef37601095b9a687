"""How far a study has come, as the demo's table tells it."""

from __future__ import annotations

import pytest

from deploy.progress import progress_of
from tests.worker.ledger.conftest import Given
from worker.findings import StudyFinding
from worker.ledger import Recorded, open_ledger
from worker.settings import DatabaseSection, Settings

STUDY = "1.2.3"


@pytest.fixture
def ledger(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    with open_ledger(Settings(database=DatabaseSection(url=url)), migrate=True) as opened:
        yield opened


@pytest.fixture
def given(ledger) -> Given:
    return Given(ledger)


@pytest.fixture
def proven(ledger, given) -> StudyFinding:
    """A study of one image whose result the PACS has proven."""
    finding = given.scored(STUDY, "1.2.3.1")
    for delivery in ledger.due_deliveries("pacs", 10):
        ledger.deliveries_sent({delivery.delivery_id: 0x0000})
        ledger.delivery_verified(delivery.delivery_id)
    return finding


def test_a_proven_result_is_a_success(proven, given):
    """All objects proven and all images there: finished, with its score and its times."""
    row = progress_of(given.study(STUDY), label="film", images=1)
    assert (row.finished, row.succeeded) == (True, True)
    assert row.probability == proven.scores[0].probability
    assert None not in row.seconds


def test_a_late_image_that_changes_nothing_leaves_the_result_in_force(proven, ledger, given):
    """When the newest generation ends unchanged, the proven result of the one before it counts."""
    claim = given.claimed(STUDY, "1.2.3.2")
    finding = given.finding(claim, by_policy=["1.2.3.2"])
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.UNCHANGED
    row = progress_of(given.study(STUDY), label="film", images=2)
    assert (row.outcome, row.succeeded) == (proven.decision, True)
    assert min(seconds for seconds in row.seconds[1:] if seconds is not None) >= 0


def test_an_image_to_come_keeps_the_study_open(proven, given):
    """A proven result of some of the images is not the end."""
    row = progress_of(given.study(STUDY), label="film", images=2)
    assert (row.finished, row.succeeded) == (False, False)


def test_a_late_image_in_work_hides_the_result_that_it_may_change(proven, given):
    """While the newest generation is scored, the study is not finished."""
    given.claimed(STUDY, "1.2.3.2")
    row = progress_of(given.study(STUDY), label="film", images=2)
    assert (row.outcome, row.finished) == ("scoring", False)

"""Another population is seen, the same one is not."""

from __future__ import annotations

import random
from datetime import timedelta

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tests.worker.build import Clock, settings_in
from tests.worker.ledger.conftest import finding_of, spooled
from worker.acquisition import vendor_of, view_of
from worker.drift import Seen, drift, psi, score_psi
from worker.findings import Vendor, View
from worker.ledger import Recorded, open_ledger
from worker.populations import PopulationDrift, drifts


def seen(probability: float | None, *, sender: str = "CT1", reason: str | None = None) -> Seen:
    return Seen(sender=sender, manufacturer="ge", view="pa", probability=probability, reason=reason)


def test_psi_is_its_definition():
    """By hand, with half a count in each bin for the ones that are empty."""
    p, q = np.array([20.5, 80.5]) / 101, np.array([50.5, 50.5]) / 101
    assert psi({"a": 50, "b": 50}, {"a": 20, "b": 80}) == pytest.approx(
        float(((p - q) * np.log(p / q)).sum())
    )
    assert psi({"a": 50, "b": 50}, {"a": 50, "b": 50}) == 0
    assert psi({"a": 100}, {"b": 100}) > 1


def test_the_same_population_is_no_drift():
    """Two draws of one distribution stay under 0.1, a shift of one standard deviation is over 0.25."""
    dice = random.Random(1)
    first = [dice.gauss(0.4, 0.1) for _ in range(1000)]
    again = [dice.gauss(0.4, 0.1) for _ in range(500)]
    other = [dice.gauss(0.5, 0.1) for _ in range(500)]
    assert score_psi(first, again) < 0.1
    assert score_psi(first, other) > 0.25


def test_a_model_that_always_says_the_same_has_a_psi():
    """Equal scores leave bins empty and the number finite."""
    assert score_psi([0.5] * 300, [0.5] * 300) == 0
    assert score_psi([0.5] * 300, [0.9] * 300) >= 0


def test_only_the_group_that_changed_drifts():
    """One sender's films change; the other sender's do not, and neither do abstentions."""
    dice = random.Random(2)

    def films(sender: str, mean: float, count: int = 400) -> list[Seen]:
        return [seen(dice.gauss(mean, 0.1), sender=sender) for _ in range(count)]

    found = drift(films("CT1", 0.4) + films("CT2", 0.4), films("CT1", 0.6) + films("CT2", 0.4))
    by_group = {(one.by, one.group): one for one in found}
    assert by_group["sender", "CT1"].score_psi > 0.25
    assert by_group["sender", "CT2"].score_psi < 0.1
    assert by_group["sender", "CT1"].abstention_psi == 0
    assert {"all", "sender", "manufacturer", "view"} == {one.by for one in found}


def test_abstentions_drift_by_reason():
    """As many set aside, for another reason, is drift."""
    before = [seen(0.4)] * 200 + [seen(None, reason="NOT_FRONTAL")] * 100
    now = [seen(0.4)] * 200 + [seen(None, reason="BODY_PART")] * 100
    assert drift(before, now)[0].abstention_psi > 0.25


def test_few_films_have_no_psi():
    """Under the minimum on either side nothing is said, but how many there are."""
    (everything, *_) = drift([seen(0.4)] * 1000, [seen(0.9)] * 50)
    assert (everything.images, everything.score_psi, everything.abstention_psi) == (50, None, None)


@pytest.mark.parametrize(
    ("said", "vendor"),
    [
        ("GE Healthcare", Vendor.GE),
        ('"GE MEDICAL SYSTEMS"', Vendor.GE),
        ("SIEMENS", Vendor.SIEMENS),
        ("FUJIFILM Corporation", Vendor.FUJIFILM),
        ("", Vendor.UNKNOWN),
        ("Doe^Jane", Vendor.OTHER),
    ],
)
def test_only_known_vendors_leave_the_header(said, vendor):
    """A manufacturer that is not known by heart is `other`, whatever stands there."""
    header = Dataset()
    header.Manufacturer = said
    assert vendor_of(header) is vendor


def test_only_known_views_leave_the_header():
    """As for manufacturers."""
    views = []
    for said in ("PA", "AP", "LL", "DOE^JANE", ""):
        header = Dataset()
        header.ViewPosition = said
        views.append(view_of(header))
    assert views == [View.PA, View.AP, View.LATERAL, View.OTHER, View.UNKNOWN]


def test_the_ledger_holds_both_populations(tmp_path):
    """The first studies of a model are the reference, later ones are compared; a heartbeat is neither."""
    settings, clock = settings_in(tmp_path, heartbeat={"calling_ae": "BEAT"}), Clock()
    with open_ledger(settings, migrate=True, clock=clock) as ledger:
        assert drifts(settings, ledger) == []
        for number in range(6):
            clock.pass_by(60)
            study = f"1.2.{number}"
            ledger.register(study, [spooled(study, f"{study}.1")])
            claim = ledger.claim(study, worker="w", lease=timedelta(minutes=1), maximum_attempts=3)
            assert ledger.record(claim, finding_of(claim), [], []) is Recorded.RECORDED
        reference, current = ledger.populations(first=4, last=5, without="BEAT")
        assert (len(reference), len(current)) == (4, 2)
        assert {one.manufacturer for one in current} == {"unknown"}
        assert all(one.probability is not None for one in current)
        sender = current[0].sender
        assert ledger.populations(first=4, last=5, without=sender) == ([], [])
        names = {family.name for family in PopulationDrift(settings, ledger).collect()}
        assert names == {"covariance_score_psi", "covariance_abstention_psi", "covariance_drift_images"}

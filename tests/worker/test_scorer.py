import numpy as np
import pytest

from dicom_node.errors import Permanent, Reason
from worker.engines import DeviceLost
from worker.findings import Inference
from worker.phantom import phantom_dataset
from worker.preprocess import to_batch
from worker.report.identity import INSTANCE_CREATOR_UID
from worker.scorer import Scorer
from worker.settings import Settings


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A worker's scorer with one decoder."""
    cache = tmp_path_factory.mktemp("engine")
    with Scorer(Settings(worker={"decoders": 1, "engine_cache": cache})) as opened:
        yield opened


@pytest.fixture
def study(spooled):
    """`study({attributes}, ...)` spools a film of one study for each."""

    def make(*changes):
        films = []
        for seed, change in enumerate(changes):
            ds = phantom_dataset(seed, rows=520, columns=430)
            ds.update(change)
            ds.StudyInstanceUID = "1.2.3"
            films.append(spooled(ds))
        return films

    return make


def patient(**values) -> dict[str, str]:
    return {"PatientID": "PHANTOM-1", "PatientBirthDate": "19500101"} | values


def test_a_film_without_a_birth_date_is_of_the_same_patient(scorer, study):
    """What a sender leaves out does not keep a study from being scored."""
    films = study(patient(), patient(PatientBirthDate=""))
    assert len(scorer.find("1.2.3", 1, films).scores) == 2


def test_two_patients_are_refused(scorer, study):
    """Films of different patients in one study are not scored."""
    with pytest.raises(Permanent) as refusal:
        scorer.find("1.2.3", 1, study(patient(), patient(PatientID="PHANTOM-2")))
    assert refusal.value.reason is Reason.IDENTITY_CONFLICT


def test_an_own_result_that_comes_back_is_no_other_patient(scorer, study):
    """A result of ours that the PACS has filed under another id meanwhile does not count."""
    back = patient(PatientID="MERGED", InstanceCreatorUID=INSTANCE_CREATOR_UID)
    finding = scorer.find("1.2.3", 1, study(patient(), back))
    assert (len(finding.scores), len(finding.set_aside)) == (1, 1)


class Silent:
    """An engine out of which no number comes: for everything, or only for what is no golden case."""

    def __init__(self, engine, golden_B1HW) -> None:
        self._engine, self._golden_B1HW = engine, golden_B1HW
        self.name, self.precision, self.batches = engine.name, engine.precision, engine.batches

    def infer(self, pixels_B1HW) -> Inference:
        found = self._engine.infer(pixels_B1HW)
        known_B = [any(np.array_equal(one, film) for film in self._golden_B1HW) for one in pixels_B1HW]
        return Inference(logits_B=np.where(known_B, found.logits_B, np.nan), cams_Bhw=found.cams_Bhw)

    def close(self) -> None:
        """The engine is closed by the scorer that it belongs to."""


@pytest.mark.parametrize(("sound", "error"), [(True, Permanent), (False, DeviceLost)])
def test_no_number_is_the_film_s_fault_or_the_engine_s(scorer, study, monkeypatch, sound, error):
    """The study is quarantined where the golden cases still come out right; else the engine is given up."""
    golden = to_batch(list(scorer.bundle.golden()[0])) if sound else []
    monkeypatch.setattr(scorer, "engine", Silent(scorer.engine, golden))
    with pytest.raises(error) as raised:
        scorer.find("1.2.3", 1, study(patient()))
    assert sound is (getattr(raised.value, "reason", None) is Reason.NOT_A_NUMBER)

import pytest

from dicom_node.errors import Permanent, Reason
from worker.phantom import phantom_dataset
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

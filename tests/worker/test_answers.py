"""What a decoder child answers arrives as it was sent, or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from dicom_node.errors import Reason, Retryable
from worker.answers import AnswerError, decode_answer, encode_answer
from worker.decode import read_film
from worker.findings import Rejected
from worker.settings import EligibilitySection


@pytest.fixture
def reading(write, phantom):
    """What a sound child makes of a phantom's film."""
    return read_film(write(phantom), EligibilitySection())


def sent(answer) -> memoryview:
    return memoryview(b"".join(encode_answer(answer)))


def altered(answer, **changes) -> memoryview:
    """The bytes of an answer whose header says something else."""
    line, _, body = bytes(sent(answer)).partition(b"\n")
    header = json.loads(line)
    for name, value in changes.items():
        (header["film"] if name in header["film"] else header)[name] = value
    return memoryview(json.dumps(header).encode() + b"\n" + body)


def test_a_reading_arrives_as_it_was_sent(reading):
    """Every field of a reading is the same at the other end."""
    found, expected = (asdict(one) for one in (decode_answer(sent(reading)), reading))
    for one in (found, expected):
        del one["film"]["input_HW"], one["film"]["display_HW"]
    assert found == expected


def test_the_images_arrive_as_they_were_sent(reading):
    """Both images of a film are the same at the other end."""
    found = decode_answer(sent(reading))
    assert np.array_equal(found.film.input_HW, reading.film.input_HW)
    assert np.array_equal(found.film.display_HW, reading.film.display_HW)


def test_a_reading_without_a_film_arrives(write, phantom):
    """A film that is not analysed arrives with its reason and its source."""
    phantom.PatientAge = "007Y"
    phantom.PatientBirthDate = ""
    reading = read_film(write(phantom), EligibilitySection())
    assert reading.film is None
    assert decode_answer(sent(reading)) == reading


def test_a_rejection_arrives():
    """A rejection is the same at the other end."""
    rejected = Rejected(sop_instance_uid="1.2", reason=Reason.UNREADABLE, sentence="It is broken.")
    assert decode_answer(sent(rejected)) == rejected


def test_a_second_chance_arrives():
    """What may succeed later is an error of the same kind and words at the other end."""
    found = decode_answer(sent(Retryable("A disk is away.")))
    assert isinstance(found, Retryable)
    assert str(found) == "A disk is away."


@pytest.mark.parametrize(
    "changes",
    [
        {"display": [1024, 1025]},
        {"display": [1, 1]},
        {"display": [-1, -1]},
        {"display": [1024]},
        {"source": -1},
        {"source": 1 << 60},
        {"rows": "520"},
        {"rows": 0},
        {"bits_stored": 1 << 40},
        {"inverted": 1},
        {"window": "LINEAR\n"},
        {"patient_digest": "DOE^JOHN"},
        {"kind": "rejected"},
        {"kind": "object"},
        {"more": 1},
        {"film": None},
    ],
    ids=str,
)
def test_a_header_that_no_sound_child_sends_is_refused(reading, changes):
    """Sizes that do not fit, other types and unknown fields make the whole answer void."""
    with pytest.raises(AnswerError):
        decode_answer(altered(reading, **changes))


@pytest.mark.parametrize("cut", [1, 1000, 300_000])
def test_an_answer_that_is_cut_off_is_refused(reading, cut):
    """An answer without its end is none."""
    with pytest.raises(AnswerError):
        decode_answer(sent(reading)[:-cut])


def test_an_answer_with_a_tail_is_refused(reading):
    """Bytes behind the end make an answer void."""
    with pytest.raises(AnswerError):
        decode_answer(memoryview(bytes(sent(reading)) + b"\0"))

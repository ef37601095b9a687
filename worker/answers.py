"""What a decoder child answers, as bytes: a line of JSON, then the source and the two images, raw.

A film may have taken its decoder over. So the answer is data that is checked field by field, never
an object that is brought to life: no field, length or number is taken that a sound child would not send.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dicom_node.errors import Reason, Retryable
from worker.findings import LONGEST_DISPLAY, Eligibility, Film, Reading, Rejected, Vendor, Verdict, View
from worker.preprocess import SIZE

LONGEST_ANSWER = 4_194_304
"""Bytes; the images are 1.2 MB at most, and the source some kilobytes."""
_LONGEST_HEADER = 65_536

Uid = Annotated[str, Field(max_length=4096)]
"""As the header has it: nobody has judged it yet."""
Words = Annotated[str, Field(max_length=500, pattern=r"^[\x20-\x7e]*$")]
Side = Annotated[int, Field(ge=1, le=65_535)]
Sides = tuple[
    Annotated[int, Field(ge=1, le=LONGEST_DISPLAY)], Annotated[int, Field(ge=1, le=LONGEST_DISPLAY)]
]

Answer = Reading | Rejected | Retryable


class AnswerError(Exception):
    """These bytes are no answer of a sound child."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Eligibility(_Part):
    verdict: Verdict
    reason: Reason | None
    open_questions: Annotated[tuple[Words, ...], Field(max_length=32)]


class _Film(_Part):
    display: Sides
    rows: Side
    columns: Side
    bits_stored: Annotated[int, Field(ge=1, le=16)]
    inverted: bool
    window: Words


class _Reading(_Part):
    kind: Literal["reading"]
    sop_instance_uid: Uid
    sop_class_uid: Uid
    series_instance_uid: Uid
    eligibility: _Eligibility
    patient_digest: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]*$")]
    source: Annotated[int, Field(ge=0)]
    film: _Film | None
    manufacturer: Vendor
    view: View


class _Rejected(_Part):
    kind: Literal["rejected"]
    sop_instance_uid: Uid
    reason: Reason
    sentence: Words


class _Retryable(_Part):
    kind: Literal["retryable"]
    sentence: Words


_HEADER: TypeAdapter[_Reading | _Rejected | _Retryable] = TypeAdapter(
    Annotated[_Reading | _Rejected | _Retryable, Field(discriminator="kind")]
)


def encode_answer(answer: Answer) -> tuple[bytes | memoryview, ...]:
    """The parts of an answer, in the order in which they are sent."""
    if isinstance(answer, Retryable):
        return (_line({"kind": "retryable", "sentence": str(answer)}),)
    if isinstance(answer, Rejected):
        return (_line({"kind": "rejected", **asdict(answer)}),)
    film = answer.film
    header = {
        "kind": "reading",
        "sop_instance_uid": answer.sop_instance_uid,
        "sop_class_uid": answer.sop_class_uid,
        "series_instance_uid": answer.series_instance_uid,
        "eligibility": asdict(answer.eligibility),
        "patient_digest": answer.patient_digest,
        "source": len(answer.source),
        "film": None if film is None else _told(film),
        "manufacturer": answer.manufacturer,
        "view": answer.view,
    }
    images = () if film is None else (_bytes(film.input_HW), _bytes(film.display_HW))
    return (_line(header), answer.source, *images)


def decode_answer(content: memoryview) -> Answer:
    """Take an answer apart; its images are views of `content`.

    Raises:
        AnswerError: it is not exactly what a sound child sends.
    """
    end = bytes(content[:_LONGEST_HEADER]).find(b"\n")
    try:
        header = _HEADER.validate_json(bytes(content[: max(end, 0)]))
    except ValidationError:
        # Without its words: they quote what was sent.
        raise AnswerError from None
    body = content[end + 1 :]
    if isinstance(header, _Reading):
        return _reading(header, body)
    if len(body):
        raise AnswerError
    if isinstance(header, _Retryable):
        return Retryable(header.sentence)
    return Rejected(sop_instance_uid=header.sop_instance_uid, reason=header.reason, sentence=header.sentence)


def _reading(header: _Reading, body: memoryview) -> Reading:
    shapes = () if header.film is None else ((SIZE, SIZE), header.film.display)
    if len(body) != header.source + sum(map(math.prod, shapes)):
        raise AnswerError
    # An image is sent exactly when it is analysed: whoever says otherwise is not sound.
    if (header.film is None) != (header.eligibility.reason is not None):
        raise AnswerError
    film = None
    if header.film is not None:
        told, images = header.film, body[header.source :]
        film = Film(
            input_HW=_image(images[: SIZE * SIZE], (SIZE, SIZE)),
            display_HW=_image(images[SIZE * SIZE :], told.display),
            rows=told.rows,
            columns=told.columns,
            bits_stored=told.bits_stored,
            inverted=told.inverted,
            window=told.window,
        )
    judged = header.eligibility
    return Reading(
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        series_instance_uid=header.series_instance_uid,
        eligibility=Eligibility(
            verdict=judged.verdict, reason=judged.reason, open_questions=judged.open_questions
        ),
        source=bytes(body[: header.source]),
        patient_digest=header.patient_digest,
        film=film,
        manufacturer=header.manufacturer,
        view=header.view,
    )


def _told(film: Film) -> dict[str, Any]:
    return {
        "display": film.display_HW.shape,
        "rows": film.rows,
        "columns": film.columns,
        "bits_stored": film.bits_stored,
        "inverted": film.inverted,
        "window": film.window,
    }


def _line(header: dict[str, Any]) -> bytes:
    return json.dumps(header).encode() + b"\n"


def _bytes(image_HW: NDArray[np.uint8]) -> memoryview:
    return np.ascontiguousarray(image_HW).data.cast("B")


def _image(content: memoryview, shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8).reshape(shape)

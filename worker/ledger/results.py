"""What was found: result, outputs, deliveries and the audit event of a study, in one transaction."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Row, insert, select, update

from dicom_node.errors import Permanent, Reason
from worker.findings import Eligibility, ImageScore, KeptOutput, Reading, StudyFinding
from worker.ledger.audit import Kind
from worker.ledger.jobs import (
    Claim,
    Jobs,
    Recorded,
    dispose,
    facts_of,
    finish_job,
    held_job,
    tell_algorithm,
    times_of,
)
from worker.ledger.models import Delivery, DeliveryState, Output, RecalledModel, Result
from worker.ledger.store import Transaction
from worker.report.identity import accession_number

_ELSEWHERE = ("path", "study_instance_uid")
"""Facts of a spooled image that an event does not repeat."""


class Results(Jobs):
    """Writes findings down."""

    def record(
        self,
        claim: Claim,
        finding: StudyFinding,
        outputs: Sequence[KeptOutput],
        destinations: Sequence[str],
    ) -> Recorded:
        """Write a finding with the claim's fence; calling it again changes nothing.

        Earlier results of the study are superseded, and what of them is not stored yet is not sent any more.

        Raises:
            Permanent: the model was recalled; nothing is written.
            Retryable: the database is away or busy.
            ValueError: the finding does not decide on exactly the claimed images.
        """
        with self._writing() as writer:
            job = held_job(writer, claim)
            if isinstance(job, Recorded):
                return job
            _refuse_recalled(writer, finding.model.sha256)
            unchanged = _in_force(
                writer,
                claim,
                Result.configuration == finding.model.configuration,
                Result.input_set_hash == finding.input_set_hash,
            )
            # Beside a result that stands, what is said of its images stands too.
            dispose(writer, claim, finding, only_pending=unchanged)
            finish_job(writer, claim)
            told = _tell(claim, finding, job, self._hash_key)
            if unchanged:
                writer.note(Kind.UNCHANGED, claim.study_instance_uid, **told)
                return Recorded.UNCHANGED
            result_id = writer.execute(insert(Result).returning(Result.id), [_row(writer, claim, finding)])
            overtaken = _supersede_earlier(writer, claim)
            add_outputs(writer, result_id.scalar_one(), outputs, destinations)
            told |= {"outputs": [told_of(output) for output in outputs], "destinations": list(destinations)}
            writer.note(Kind.RECORDED, claim.study_instance_uid, **told, **overtaken)
            return Recorded.RECORDED

    def finish_without_result(self, claim: Claim, finding: StudyFinding) -> Recorded:
        """End the job with a disposition for every image and nothing to write back."""
        with self._writing() as writer:
            job = held_job(writer, claim)
            if isinstance(job, Recorded):
                return job
            dispose(writer, claim, finding, only_pending=_in_force(writer, claim))
            finish_job(writer, claim)
            told = _tell(claim, finding, job, self._hash_key)
            writer.note(Kind.FINISHED_WITHOUT_RESULT, claim.study_instance_uid, **told)
            return Recorded.RECORDED


def _refuse_recalled(writer: Transaction, model_sha256: str) -> None:
    # Within the transaction: a recall that is under way misses no result.
    recalled = select(RecalledModel.model_sha256).where(RecalledModel.model_sha256 == model_sha256)
    if writer.execute(recalled).one_or_none() is not None:
        raise Permanent(
            Reason.MODEL_RECALLED,
            "The model was recalled: activate another, restart the workers, and run `covariance quarantine "
            "release --reason MODEL_RECALLED`.",
        )


def _in_force(writer: Transaction, claim: Claim, *same: ColumnElement[bool]) -> bool:
    mine = (Result.study_instance_uid == claim.study_instance_uid, Result.superseded_at.is_(None))
    return writer.execute(select(Result.id).where(*mine, *same)).one_or_none() is not None


def _row(writer: Transaction, claim: Claim, finding: StudyFinding) -> dict[str, Any]:
    decisive = finding.scores[0] if finding.scores else None
    model = finding.model
    return {
        "study_instance_uid": claim.study_instance_uid,
        "job_id": claim.job_id,
        "generation": claim.generation,
        "input_set_hash": finding.input_set_hash,
        "model_name": model.name,
        "model_version": model.version,
        "model_sha256": model.sha256,
        "configuration": model.configuration,
        "engine": model.engine,
        "precision": model.precision,
        "recipe": model.recipe,
        "threshold": model.threshold,
        "operating_point": model.operating_point,
        "decision": finding.decision,
        "logit": decisive.logit if decisive else None,
        "probability": decisive.probability if decisive else None,
        "analysed_at": finding.analysed_at,
        "recorded_at": writer.now,
    }


def _supersede_earlier(writer: Transaction, claim: Claim) -> dict[str, Any]:
    earlier = writer.execute(
        update(Result)
        .where(
            Result.study_instance_uid == claim.study_instance_uid,
            Result.superseded_at.is_(None),
            Result.job_id != claim.job_id,
        )
        .values(superseded_at=writer.now)
        .returning(Result.id, Result.generation)
    ).all()
    if not earlier:
        return {}
    outputs = select(Output.id).where(Output.result_id.in_([row.id for row in earlier]))
    unsent = (DeliveryState.DUE, DeliveryState.PARKED, DeliveryState.FAILED)
    cancelled = writer.execute(
        update(Delivery)
        .where(Delivery.output_id.in_(outputs), Delivery.state.in_(unsent))
        .values(state=DeliveryState.CANCELLED)
        .returning(Delivery.id)
    ).scalars()
    return {
        "supersedes_generations": [row.generation for row in earlier],
        "cancelled_deliveries": sorted(cancelled),
    }


def add_outputs(
    writer: Transaction, result_id: int, outputs: Sequence[KeptOutput], destinations: Sequence[str]
) -> None:
    """Add the outputs of a result, each due at every destination."""
    if not outputs:
        return
    rows = [
        told_of(output) | {"result_id": result_id, "path": writer.files.name(output.path)}
        for output in outputs
    ]
    output_ids = writer.execute(insert(Output).returning(Output.id), rows).scalars().all()
    deliveries = [
        {
            "output_id": output_id,
            "destination": destination,
            "state": DeliveryState.DUE,
            "attempts": 0,
            "due_at": writer.now,
            "created_at": writer.now,
        }
        for output_id in output_ids
        for destination in destinations
    ]
    if deliveries:
        writer.execute(insert(Delivery), deliveries)


def told_of(output: KeptOutput) -> dict[str, Any]:
    """What rows and events tell of an output."""
    return {key: value for key, value in asdict(output).items() if key != "path"}


def _tell(claim: Claim, finding: StudyFinding, job: Row[Any], hash_key: bytes) -> dict[str, Any]:
    scores = {score.reading.sop_instance_uid: score for score in finding.scores}
    readings = {reading.sop_instance_uid: reading for reading in finding.set_aside}
    readings |= {sop: score.reading for sop, score in scores.items()}
    rejected = {one.sop_instance_uid: one for one in finding.quarantined}
    images = []
    for one in claim.instances:
        sop = one.sop_instance_uid
        image = {key: value for key, value in asdict(one).items() if key not in _ELSEWHERE}
        if sop in rejected:
            image |= {"reason": rejected[sop].reason, "sentence": rejected[sop].sentence}
        else:
            image |= _read(readings[sop], hash_key) | _scored(scores.get(sop))
        images.append(image)
    return {
        **facts_of(claim),
        **times_of(job),
        **tell_algorithm(finding.model),
        "scored_at": finding.analysed_at,
        "decision": finding.decision,
        "input_set_hash": finding.input_set_hash,
        "images": images,
    }


def _read(reading: Reading, hash_key: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {
        "patient": _keyed(hash_key, reading.patient_digest.encode()),
        "accession_number": _keyed(hash_key, accession_number(reading.source)),
    }
    told |= {"manufacturer": reading.manufacturer, "view": reading.view}
    return told | _judged(reading.eligibility)


def _keyed(hash_key: bytes, value: bytes) -> str | None:
    """Who holds the site's key and a value can look for it; the trail alone gives no value away."""
    return hmac.new(hash_key, value, hashlib.sha256).hexdigest() if value else None


def _judged(eligibility: Eligibility) -> dict[str, Any]:
    return {
        "verdict": eligibility.verdict,
        "reason": eligibility.reason,
        "open_questions": list(eligibility.open_questions),
    }


def _scored(score: ImageScore | None) -> dict[str, Any]:
    if score is None:
        return {}
    told: dict[str, Any] = {"logit": score.logit, "probability": score.probability}
    if film := score.reading.film:
        told |= {"window": film.window, "inverted": film.inverted}
        told |= {"rows": film.rows, "columns": film.columns, "bits_stored": film.bits_stored}
    return told

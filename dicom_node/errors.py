"""The error's type is the decision: try again, or stop with a reason that people can act on."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an image or a study was not scored. Codes stand in the audit, in metrics and in reports."""

    # By policy: valid, and deliberately not analysed.
    SOP_CLASS = "SOP_CLASS"
    MODALITY = "MODALITY"
    OWN_OUTPUT = "OWN_OUTPUT"
    BODY_PART = "BODY_PART"
    NOT_FRONTAL = "NOT_FRONTAL"
    AGE = "AGE"
    QUALITY_CONTROL = "QUALITY_CONTROL"
    COMPANION = "COMPANION"
    TOO_SMALL = "TOO_SMALL"
    NO_CONTRAST = "NO_CONTRAST"
    MULTIFRAME = "MULTIFRAME"
    COLOUR = "COLOUR"
    INDETERMINATE = "INDETERMINATE"

    # Quarantined: accepted, and cannot be scored.
    UNREADABLE = "UNREADABLE"
    PIXELS_UNDECODABLE = "PIXELS_UNDECODABLE"
    PIXELS_INCONSISTENT = "PIXELS_INCONSISTENT"
    DECODER_CRASHED = "DECODER_CRASHED"
    DECODER_TIMEOUT = "DECODER_TIMEOUT"
    DECODER_MEMORY = "DECODER_MEMORY"
    CONFLICTING_CONTENT = "CONFLICTING_CONTENT"
    IDENTITY_CONFLICT = "IDENTITY_CONFLICT"
    FILE_MISSING = "FILE_MISSING"
    FILE_ALTERED = "FILE_ALTERED"
    FILE_UNREADABLE = "FILE_UNREADABLE"
    FILE_PURGED = "FILE_PURGED"
    TOO_MANY_ATTEMPTS = "TOO_MANY_ATTEMPTS"
    NOT_A_NUMBER = "NOT_A_NUMBER"
    REPORT_REFUSED = "REPORT_REFUSED"
    MODEL_RECALLED = "MODEL_RECALLED"


QUARANTINES = tuple(Reason)[tuple(Reason).index(Reason.UNREADABLE) :]
"""Reasons that people must look at."""


class CovarianceError(Exception):
    """Every error that we raise on purpose. Its text is one sentence without names or patient ids."""


class Retryable(CovarianceError):
    """The same step may succeed later: a peer, a disk or a broker is away."""


class Permanent(CovarianceError):
    """The same step will fail again: stop, and keep the reason."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class ConfigurationError(CovarianceError):
    """The settings, a bundle or the machine cannot work: the sentence says what to change."""

"""The coded concepts of our reports, and what each reason says to a reader."""

from __future__ import annotations

from pydicom.sr.coding import Code

from dicom_node.errors import Reason

REPORT_TITLE = Code("126000", "DCM", "Imaging Measurement Report")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
DEVICE = Code("121007", "DCM", "Device")
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")

COVID_19 = Code("840539006", "SCT", "COVID-19")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
LUNG = Code("39607008", "SCT", "Lung")
PROBABILITY = Code("122157", "DCM", "Probability")
NO_UNITS = Code("1", "UCUM", "no units")

SUMMARY_OF_ANALYSES = Code("111065", "DCM", "Summary of Analyses")
SUCCEEDED = Code("111222", "DCM", "Succeeded")
PARTIALLY_SUCCEEDED = Code("111223", "DCM", "Partially Succeeded")
NOT_ATTEMPTED = Code("111225", "DCM", "Not Attempted")
REJECTED_FOR_QUALITY = Code("113001", "DCM", "Rejected for Quality Reasons")
REJECTED_FOR_SAFETY = Code("113037", "DCM", "Rejected for Patient Safety Reasons")
KEY_OBJECT_DESCRIPTION = Code("113012", "DCM", "Key Object Description")
COMMENT = Code("121106", "DCM", "Comment")

VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")
CLASS_ACTIVATION = Code("130402", "DCM", "Class activation")
METHOD = Code("370129005", "SCT", "Measurement Method")
SOURCE_OF_MEASUREMENT = Code("121112", "DCM", "Source of Measurement")
PROCESSED_SOURCE = Code("121322", "DCM", "Source image for image processing operation")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")

RESEARCH_ONLY = "RESEARCH ONLY - NOT FOR DIAGNOSIS"

EXPLANATIONS: dict[Reason, str] = {
    Reason.SOP_CLASS: "objects of this kind are not analysed",
    Reason.MODALITY: "images of this modality are not analysed",
    Reason.BODY_PART: "the header names another body part than the chest",
    Reason.NOT_FRONTAL: "only frontal (PA or AP) views are analysed",
    Reason.AGE: "the patient is younger than the analysis is set up for",
    Reason.QUALITY_CONTROL: "a quality control image is not analysed",
    Reason.COMPANION: "a processed companion of a film (bone, soft tissue, subtraction) is not analysed",
    Reason.TOO_SMALL: "the image has too few pixels",
    Reason.NO_CONTRAST: "the image shows almost nothing",
    Reason.MULTIFRAME: "images of several frames are not analysed",
    Reason.COLOUR: "colour images are not analysed",
    Reason.INDETERMINATE: "the header leaves open whether this is a frontal chest radiograph of an adult",
}
"""For the reasons that policy gives; the others are defects, on which staff can act and readers cannot."""
NOT_SCORABLE = "the image could not be processed"
